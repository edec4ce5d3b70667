//! Seeded generators of polyp-like pictures and CT/MR-like volumes: for the first run, the tests and the pretraining.
