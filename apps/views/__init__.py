"""From a result's tidy table to what a component draws: arranging and wording, no arithmetic."""
