"""A volume for the module Sample Data, downloaded only when the user clicks it."""

from pathlib import Path

from slicer.i18n import tr as _

CATEGORY = "SAUNet"
LUMBAR = {
    "sampleName": "SpineLumbarT2",
    # Tutorial data of the Spinal Cord Toolbox (MIT licence), at a fixed commit.
    "uris": "https://github.com/spinalcordtoolbox/sct_tutorial_data/raw/f176fd21cfb0e07978761bfff4867c5f848d4c01"
    "/single_subject/data/t2_lumbar/t2_lumbar.nii.gz",
    "fileNames": "t2_lumbar.nii.gz",
    "nodeNames": "SpineLumbarT2",
    "checksums": "SHA256:380bbd7ad8c90fdfc5f43ab297190fe49b8b7e8eea69fabba42b4b30d28c844f",
}


def registerSampleData() -> None:
    """Add the volume to the module Sample Data, unless that module is disabled."""
    try:
        import SampleData
    except ModuleNotFoundError:
        return

    icons = Path(__file__).resolve().parent.parent / "Resources" / "Icons"
    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("SAU-Net Spine Segmentation"))
    logic.registerCustomSampleDataSource(
        category=CATEGORY, thumbnailFileName=str(icons / "SpineLumbarT2.png"), loadFileTypes="VolumeFile", **LUMBAR
    )
