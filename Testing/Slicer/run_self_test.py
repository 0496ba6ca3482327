"""Run the module's self-test in Slicer and leave with its result.

The Segment Editor's effects need the main window; on a server without a screen:

xvfb-run -a Slicer --no-splash --testing --additional-module-paths SAUNetSegmentation \\
    --python-script Testing/Slicer/run_self_test.py
"""

import traceback

import slicer


def main() -> int:
    """Exit status of the self-test."""
    try:
        import SAUNetSegmentation

        test = SAUNetSegmentation.SAUNetSegmentationTest()
        test.messageDelay = 50
        test.runTest()
    except Exception:  # told, and Slicer ends instead of waiting for a user
        traceback.print_exc()
        return slicer.util.EXIT_FAILURE
    return slicer.util.EXIT_SUCCESS


slicer.util.exit(main())
