"""Images: PNG, JPEG, DICOM."""
