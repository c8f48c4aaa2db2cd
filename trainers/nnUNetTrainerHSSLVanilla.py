"""`nnUNetv2_train TARGET 3d_fullres FOLD -p nnUNetPlans_HSSL -tr nnUNetTrainerHSSLVanilla`."""

from hssl_nnunet.training.vanilla import HSSLVanilla


class nnUNetTrainerHSSLVanilla(HSSLVanilla):
    """Stock nnU-Net at the length of a fine-tuning run."""
