"""The Explorer: pages that show what `probe` computes, and compute nothing themselves."""
