"""`nnUNetv2_train CORPUS 3d_fullres all -tr nnUNetTrainerHSSLPretrain`."""

from hssl_nnunet.training.pretrainer import HSSLPretrainer


class nnUNetTrainerHSSLPretrain(HSSLPretrainer):
    """Pretrains shared weights on a corpus."""
