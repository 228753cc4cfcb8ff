"""The ground: atomic writes, locks between processes, the layout of a run's folder."""
