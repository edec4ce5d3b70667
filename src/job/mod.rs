//! Jobs: one file each, reading like the sentence that describes it.
