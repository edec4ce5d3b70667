//! A sparse step makes no buffer of an encoder weight's size: no dense gradient, no dense optimizer state, no dense copy.
//!
//! The allocator counts requests of exactly the encoder matrices' sizes; shapes are chosen so that no activation has
//! them, and the scratch panels of matrix products, told by their alignment, are left out. The same count on a full fine-tuning step is above zero, so the test can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]
#![allow(unsafe_code, reason = "a global allocator is unsafe by its trait; it only counts and passes on")]

mod common;

use burn::tensor::{Device, Tensor};
use segft::method::{self, Score, Settings, Sum};
use segft::model::sam::Activations;
use segft::model::{Kind, Part, SamConfig, checkpoint};
use segft::predict::prompt_free_logits;
use segft::train::loss::loss;
use segft::tune::{attach, gradients, optimizer::Optimizer};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static WATCHED: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
static HITS: [AtomicUsize; 8] = [const { AtomicUsize::new(0) }; 8];
static COUNTING: AtomicBool = AtomicBool::new(false);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

/// The matrix product packs panels of its operands into scratch aligned to cache lines; tensors are not so aligned.
const SCRATCH_ALIGN: usize = 128;

fn note(size: usize, align: usize) {
    PEAK.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
    if COUNTING.load(Ordering::Relaxed) && align < SCRATCH_ALIGN {
        for (watched, hits) in WATCHED.iter().zip(&HITS) {
            if watched.load(Ordering::Relaxed) == size {
                hits.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), layout.align());
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), layout.align());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.align());
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests of each watched size during two steps of a method, and the most bytes that those steps held at once beside
/// what was there before.
fn hits(name: &str, config: SamConfig, activations: Activations, sizes: &[usize]) -> (Vec<usize>, usize) {
    let (hits, peak, _) = measure(name, config, 72, activations, sizes);
    (hits, peak)
}

/// The same at a size, and the forecast of the peak.
fn measure(
    name: &str,
    config: SamConfig,
    size: usize,
    activations: Activations,
    sizes: &[usize],
) -> (Vec<usize>, usize, u64) {
    let device = Device::flex();
    let mut sam = checkpoint::random("small", config, 1).into_sam(&device);
    sam.activations = activations;
    let specs = sam.config.specs();
    let pixels = Tensor::<4>::ones([1, 3, size, size], &device);
    let target = Tensor::<4>::ones([1, 1, size, size], &device);
    let step =
        |sam: &segft::model::Sam| loss(prompt_free_logits(sam, pixels.clone()), target.clone(), target.clone()).total();
    let method = method::find(name).unwrap();
    let once = std::iter::once(Ok(()));
    let chosen = gradients::choose(method, &sam, &Settings::default(), 0, once, |sam, ()| Ok(step(sam))).unwrap();
    let plan = method::plan(method, &specs, chosen.as_ref(), &Settings::default());
    attach(&mut sam, &plan, &device);
    let mut adam = Optimizer::adam(1e-8);
    for (slot, size) in WATCHED.iter().zip(sizes) {
        slot.store(*size, Ordering::Relaxed);
    }
    HITS.iter().for_each(|h| h.store(0, Ordering::Relaxed));
    COUNTING.store(true, Ordering::Relaxed);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    for _ in 0..2 {
        let loss = step(&sam);
        adam.step(&mut sam.weights, &mut loss.backward(), 1e-3);
    }
    COUNTING.store(false, Ordering::Relaxed);
    let hits = HITS.iter().take(sizes.len()).map(|h| h.load(Ordering::Relaxed)).collect();
    let forecast = segft::job::forecast::step(&sam, size, 1, activations);
    (hits, PEAK.load(Ordering::Relaxed) - before, forecast)
}

/// What `plan` says of a step, from shapes, beside what the allocator counts.
fn forecasts() {
    let named = |name: &str, image_size| SamConfig { image_size, ..SamConfig::named(name).unwrap() };
    let kept = [Activations::Kept; 2];
    let both = [Activations::Kept, Activations::Recomputed];
    let works = [
        ("gps", named("vit_t", 128), both),
        ("full", named("tiny", 128), both),
        ("decoder", named("tiny", 128), kept),
        ("lora-all", named("vit_t", 128), both),
        ("ssf", named("vit_t", 128), both),
        ("adapter", named("vit_t", 128), both),
        ("vpt", named("vit_t", 128), both),
        ("last", named("vit_t", 128), kept),
    ];
    for (method, config, activations) in works {
        for activations in activations {
            let size = config.image_size;
            let (_, measured, forecast) = measure(method, config.clone(), size, activations, &[]);
            let ratio = forecast as f64 / measured as f64;
            assert!((0.85..=1.15).contains(&ratio), "{method} {activations:?}: {forecast} against {measured}");
        }
    }
}

/// The selection pass holds its sums and, beside what a picture's pass takes, no more than some layers' gradients.
fn selections() {
    // Wide and for small pictures: weights are nearly all that there is.
    let config = SamConfig { image_size: 32, embed: 256, depth: 6, global: vec![5], ..common::small_config() };
    let matrix = |s: &&segft::model::WeightSpec| method::selectable(s);
    let encoder: usize = config.specs().iter().filter(matrix).map(|s| 4 * s.len()).sum();
    let device = Device::flex();
    let mut sam = checkpoint::random("wide", config, 1).into_sam(&device);
    let pixels = Tensor::<4>::ones([1, 3, 32, 32], &device);
    let target = Tensor::<4>::ones([1, 1, 32, 32], &device);
    let step =
        |sam: &segft::model::Sam| loss(prompt_free_logits(sam, pixels.clone()), target.clone(), target.clone()).total();
    let peak = |of: &dyn Fn()| {
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        of();
        (PEAK.load(Ordering::Relaxed) - before) as f64 / encoder as f64
    };
    for activations in [Activations::Kept, Activations::Recomputed] {
        sam.activations = activations;
        for (needs, most) in [(&[Sum::Signed][..], 1.3), (&[Sum::Signed, Sum::Square], 2.3)] {
            let summed = peak(&|| {
                let two = [(), ()].into_iter().map(Ok);
                gradients::accumulate(&sam, needs, two, |sam, ()| Ok(step(sam))).unwrap();
            });
            assert!((most - 0.3..most).contains(&summed), "{needs:?}: {summed} times the encoder");
        }
        // Gradients side by side, as backward returns them, are another encoder: the numbers above can be missed.
        let returned = peak(&|| {
            let mut tracked = sam.frozen();
            tracked.weights.iter_mut().filter(|(_, w)| method::selectable(&w.spec)).for_each(|(_, w)| w.train_all());
            let gradients = step(&tracked).backward();
            let sum = |w: &segft::model::weights::Weight| w.value.grad(&gradients).map(segft::model::weights::to_vec);
            let sums: Vec<Vec<f32>> = tracked.weights.iter().filter_map(|(_, w)| sum(w)).collect();
            assert!(!sums.is_empty());
        });
        assert!(returned > 1.9, "{returned}");
    }
    // Of inputs there is a number a column to hold: what is as large as a matrix is made of one after another.
    let (gps, settings) =
        (method::find("gps").unwrap(), Settings { score: Some(Score::ActivationWeight), ..Settings::default() });
    let looked = peak(&|| {
        let two = [(), ()].into_iter().map(Ok);
        gradients::choose(gps, &sam, &settings, 0, two, |sam, ()| Ok(step(sam))).unwrap();
    });
    assert!(looked < 0.5, "{looked} times the encoder");
}

/// One test, because the counters are the whole process's.
#[test]
fn a_sparse_step_has_no_buffer_of_an_encoder_matrix_and_needs_less_where_blocks_are_run_again() {
    let config = common::small_config();
    let specs = config.specs();
    let mut sizes: Vec<usize> = specs
        .iter()
        .filter(|s| s.part == Part::ImageEncoder && matches!(s.kind, Kind::Linear | Kind::Conv))
        .map(|s| 4 * s.len())
        .collect();
    sizes.sort_unstable();
    sizes.dedup();
    let (full, _) = hits("full", config.clone(), Activations::Kept, &sizes);
    assert!(full.iter().all(|n| *n > 0), "full fine-tuning has such buffers: {sizes:?} {full:?}");
    for (sparse, activations) in
        [("gps", Activations::Kept), ("gps", Activations::Recomputed), ("neuroada", Activations::Kept)]
    {
        let (found, _) = hits(sparse, config.clone(), activations, &sizes);
        assert!(found.iter().all(|n| *n == 0), "{sparse}: buffers of encoder size: {sizes:?} {found:?}");
    }
    // With sixteen blocks, their inside is most of what a step holds.
    let deep = SamConfig { depth: 16, ..config };
    let [(_, kept), (_, again)] =
        [Activations::Kept, Activations::Recomputed].map(|a| hits("gps", deep.clone(), a, &sizes));
    assert!(2 * again < kept, "{again} of {kept} bytes");
    forecasts();
    selections();
}
