"""Energy and load of the machine. The only place that imports codecarbon."""
