"""Pictures on the device: data sets, folders, drawn shapes, batches."""
