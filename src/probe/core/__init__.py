"""The values every room speaks in. Imports nothing of probe but itself."""
