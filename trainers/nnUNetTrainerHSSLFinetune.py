"""`nnUNetv2_train TARGET 3d_fullres FOLD -p nnUNetPlans_HSSL -tr nnUNetTrainerHSSLFinetune`."""

from hssl_nnunet.training.finetuner import HSSLFinetuner


class nnUNetTrainerHSSLFinetune(HSSLFinetuner):
    """Fine-tunes a target from pretrained weights."""
