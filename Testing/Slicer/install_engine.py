"""Install what the engine needs into Slicer's Python, for the continuous integration only."""

import traceback

import slicer


def main() -> int:
    """Exit status of the installation."""
    try:
        from SAUNetPanel.Dependencies import TORCH, Dependencies

        slicer.util.pip_install([TORCH])
        slicer.util.pip_install(Dependencies().requirements())
        missing = Dependencies().missing()
        print("missing:", missing)
        return slicer.util.EXIT_FAILURE if missing else slicer.util.EXIT_SUCCESS
    except Exception:
        traceback.print_exc()
        return slicer.util.EXIT_FAILURE


slicer.util.exit(main())
