"""`nnUNetv2_train TARGET 3d_fullres FOLD -p nnUNetPlans_HSSL -tr nnUNetTrainerHSSLScratch`."""

from hssl_nnunet.training.finetuner import HSSLFinetuner


class nnUNetTrainerHSSLScratch(HSSLFinetuner):
    """The control: the same trainer, schedule, plan and data without pretrained weights."""

    seeded = False
