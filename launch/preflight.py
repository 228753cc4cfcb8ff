"""Batch scripts that an earlier version queued run this module."""

from launch.in_allocation.preflight import main

if __name__ == "__main__":
    main()
