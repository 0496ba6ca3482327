"""Install what the engine needs into Slicer's Python, as a user does, for the continuous integration only.

Run it twice: an extension is available only after the next start.
"""

import traceback

import slicer


def main() -> int:
    """Install; returns the exit status."""
    try:
        extensions = slicer.app.extensionsManagerModel()
        if not extensions.isExtensionInstalled("PyTorch"):
            extensions.interactive = False
            done = extensions.installExtensionFromServer("PyTorch", False)
            return slicer.util.EXIT_SUCCESS if done else slicer.util.EXIT_FAILURE

        from SAUNetPanel.Dependencies import Dependencies

        dependencies = Dependencies()
        dependencies.log.connect(print)
        dependencies.installMissing(lambda text: True)
        print("missing:", dependencies.missing())
        return slicer.util.EXIT_FAILURE if dependencies.missing() else slicer.util.EXIT_SUCCESS
    except Exception:  # report it, and end Slicer instead of waiting for a user
        traceback.print_exc()
        return slicer.util.EXIT_FAILURE


slicer.util.exit(main())
