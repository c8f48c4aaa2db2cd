"""From files to a corpus: intake, integrity, fingerprint, hierarchy, manifest."""
