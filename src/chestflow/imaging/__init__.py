"""Reading DICOM, NIfTI and PNG; intensities; regions; class activation maps."""
