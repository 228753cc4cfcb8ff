"""From a source dataset to a store, and whether the store is sound."""
