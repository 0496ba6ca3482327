"""Run the module's self-test in Slicer and exit with its result.

The Segment Editor's effects need the main window; on a server without a screen:

xvfb-run -a Slicer --no-splash --testing --additional-module-paths SAUNetSegmentation \\
    --python-script Testing/Slicer/run_self_test.py
"""

import traceback

import slicer


def main() -> int:
    """Run the self-test; returns the exit status."""
    try:
        import SAUNetSegmentation

        test = SAUNetSegmentation.SAUNetSegmentationTest()
        test.messageDelay = 50
        test.runTest()
    except Exception:  # report it, and end Slicer instead of waiting for a user
        traceback.print_exc()
        return slicer.util.EXIT_FAILURE
    return slicer.util.EXIT_SUCCESS


slicer.util.exit(main())
