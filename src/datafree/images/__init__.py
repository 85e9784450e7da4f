"""Images from disk: with labels for evaluation, without to solve layers on."""

from datafree.images.labelled import BATCH_SIZE, ArchiveImages, FolderImages, ImagesError, Pixels, load_images
from datafree.images.unlabelled import MOST, load_unlabelled

__all__ = [
    "BATCH_SIZE",
    "MOST",
    "ArchiveImages",
    "FolderImages",
    "ImagesError",
    "Pixels",
    "load_images",
    "load_unlabelled",
]
