"""Probe: from a prompt to a mechanism.

The public list. Names are loaded when first used, so importing probe costs nothing.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

_HOME: dict[str, str] = {
    # the api
    "load_model": "probe.api",
    "load_task": "probe.api",
    "load_corpus": "probe.api",
    "everyday_corpus": "probe.corpora.everyday",
    "tiny_rows": "probe.models.tiny.text",
    "train_tiny": "probe.models.tiny.train",
    "tasks": "probe.api",
    "models": "probe.api",
    "shipped_dictionaries": "probe.api",
    "run": "probe.api",
    "methods": "probe.api",
    "rerun": "probe.api",
    "load_result": "probe.api",
    "runs": "probe.api",
    "diff": "probe.api",
    "doctor": "probe.api",
    "merge": "probe.api",
    "weight_task_vector": "probe.api",
    "compare_weight_vectors": "probe.api",
    # values
    "Task": "probe.core.task",
    "Prompt": "probe.core.task",
    "Encoded": "probe.core.task",
    "Site": "probe.core.site",
    "Trace": "probe.core.trace",
    "Result": "probe.core.result",
    "View": "probe.core.result",
    "Corpus": "probe.corpora.documents",
    "decompose": "probe.core.decompose",
    "fit_tuned_lens": "probe.api",
    "load_dictionary": "probe.api",
    "harvest": "probe.api",
    "train_sae": "probe.api",
    "train_saes": "probe.api",
    "train_transcoder": "probe.api",
    "train_crosscoder": "probe.api",
    "write_corpus": "probe.api",
    "evaluate_sae": "probe.dictionaries.evaluate",
    "frontier": "probe.dictionaries.frontier",
    "index_features": "probe.dictionaries.index_features",
    "FeatureIndex": "probe.dictionaries.feature_index",
    "sparse_probing": "probe.dictionaries.sparse_probing",
    "absorption": "probe.dictionaries.absorption",
    "recovery": "probe.dictionaries.recovery",
    "listening": "probe.core.progress",
    "Circuit": "probe.core.circuit",
    "Graph": "probe.core.graph",
    "Metric": "probe.core.metric",
    "Model": "probe.core.model",
    "Dictionary": "probe.core.dictionary",
    "SparseDictionary": "probe.dictionaries.dictionary",
    "ActivationStore": "probe.dictionaries.store",
    "Edit": "probe.core.edit",
    "patch": "probe.core.edit",
    "ablate": "probe.core.edit",
    "steer": "probe.core.edit",
    "scale": "probe.core.edit",
    "project_out": "probe.core.edit",
    "splice": "probe.core.splice",
    "method": "probe.core.registry",
    # published claims
    "study": "probe.api",
    "Exhibit": "probe.runs.study",
    "Claim": "probe.core.claim",
    "at_least": "probe.core.claim",
    "at_most": "probe.core.claim",
    "between": "probe.core.claim",
    "over_seeds": "probe.core.claim",
    "over_examples": "probe.core.claim",
    "exactly": "probe.core.claim",
    "reproduce": "probe.api",
    "studies": "probe.api",
    "write_report": "probe.api",
    # tasks by example, and vectors
    "PairTask": "probe.core.pairs",
    "VectorResult": "probe.core.vector",
    "icl_task": "probe.api",
    "icl_tasks": "probe.api",
    "task_vector": "probe.api",
    "function_vector": "probe.api",
    "steering_vector": "probe.api",
    "feature_vector": "probe.api",
    "evaluate_vector": "probe.api",
    "vector_cost": "probe.api",
    "vector_transfer": "probe.api",
    "vector_cosines": "probe.api",
    "load_vector": "probe.api",
    # toys
    "train_toys": "probe.methods.superposition.toys",
    "draw_features": "probe.methods.superposition.toys",
    "Toys": "probe.methods.superposition.toys",
    "dimensionality": "probe.methods.superposition.geometry",
    "dimensions_per_feature": "probe.methods.superposition.geometry",
    "feature_cosines": "probe.methods.superposition.geometry",
    "feature_groups": "probe.methods.superposition.geometry",
    "welch_bound": "probe.methods.superposition.packing",
    "pair_angles": "probe.methods.superposition.packing",
    "pack_directions": "probe.methods.superposition.packing",
    "train_modular": "probe.models.modular",
    "Modular": "probe.models.modular",
    # errors
    "ProbeError": "probe.core.errors",
    "SiteError": "probe.core.errors",
    "EditError": "probe.core.errors",
    "TaskError": "probe.core.errors",
    "CorpusError": "probe.core.errors",
    "ModelError": "probe.core.errors",
    "OptionError": "probe.core.errors",
    "SizeError": "probe.core.errors",
    "DictionaryError": "probe.core.errors",
    "RunError": "probe.core.errors",
    "ProbeWarning": "probe.core.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"probe has no {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Public(ModuleType):
    """``methods``, ``tasks``, ``models`` and ``runs`` are rooms and public functions.

    Importing a room would put the module where the function is looked for; the function wins.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Public
