"""How the bridge reads a tiny transformer: as Llama, less what it has not.

An attention-only model has no second norm and no MLP here, so none of their sites is in its
``sites``, and ``dims.d_mlp`` is 0.
"""

from typing import Any, cast

from transformer_lens.factories.architecture_adapter_factory import (
    SUPPORTED_ARCHITECTURES,
    ArchitectureAdapterFactory,
)
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    LinearBridge,
    MLPBridge,
    PosEmbedBridge,
    RMSNormalizationBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.supported_architectures.llama import LlamaArchitectureAdapter

from probe.core.site import KINDS
from probe.models.tiny.architecture import TinyForCausalLM


class TinyAdapter(LlamaArchitectureAdapter):
    """Llama's adapter, whose block is cut to the model's when it is seen."""

    def prepare_model(self, hf_model: Any) -> None:
        """Map the parts there are; the bridge's own configuration keeps no word of which."""
        super().prepare_model(hf_model)
        config, mapping = hf_model.config, cast(dict[str, Any], self.component_mapping)
        self.cfg.gated_mlp = False
        self.cfg.attn_only = config.activation is None
        parts: dict[str, GeneralizedComponent] = {
            "ln1": RMSNormalizationBridge(name="input_layernorm", config=self.cfg),
            "attn": self._build_attention_bridge(),
        }
        if not self.cfg.attn_only:
            parts["ln2"] = RMSNormalizationBridge(name="post_attention_layernorm", config=self.cfg)
            parts["mlp"] = MLPBridge(
                name="mlp",
                config=self.cfg,
                submodules={
                    "in": LinearBridge(name="up_proj"),
                    "out": LinearBridge(name="down_proj"),
                },
            )
        block = BlockBridge(name="model.layers", submodules=parts)
        if self.cfg.attn_only:
            absent = {KINDS[kind].hook.rsplit(".", 1)[-1] for kind in ("resid_mid", "mlp_out")}
            block.hook_aliases = {k: v for k, v in block.hook_aliases.items() if k not in absent}
        mapping["blocks"] = block
        if config.positions == "learned":
            mapping["pos_embed"] = PosEmbedBridge(name="model.embed_positions")


def register() -> None:
    """Make the adapter known. A second time changes nothing.

    The bridge looks an architecture up in two tables, and its public way in fills one of them.
    """
    name = TinyForCausalLM.__name__
    ArchitectureAdapterFactory.register_adapter(name, TinyAdapter)
    SUPPORTED_ARCHITECTURES[name] = TinyAdapter
