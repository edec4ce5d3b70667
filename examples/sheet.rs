//! A contact sheet of the pretraining world, to look at: `cargo run --release --example sheet -- sheet.png`.
use segft::image::Picture;
use segft::io::picture::write_picture;
use segft::phantom::world::scene;

fn main() {
    let path = std::env::args().nth(1).unwrap_or_else(|| "sheet.png".into());
    let (columns, rows, side) = (8, 6, 128);
    let mut rgb = vec![0u8; 3 * columns * 2 * side * rows * side];
    let start = std::time::Instant::now();
    for n in 0..columns * rows {
        let scene = scene(5, n as u64, side);
        for y in 0..side {
            for x in 0..side {
                let at = |column: usize| 3 * ((n / columns * side + y) * columns * 2 * side + column * side + x);
                let from = 3 * (y * side + x);
                let left = at(2 * (n % columns));
                rgb[left..left + 3].copy_from_slice(&scene.picture.rgb[from..from + 3]);
                let number = scene.objects[y * side + x];
                let colour = [number.wrapping_mul(83), number.wrapping_mul(149), number.wrapping_mul(211)];
                let right = at(2 * (n % columns) + 1);
                rgb[right..right + 3].copy_from_slice(&colour);
            }
        }
    }
    eprintln!("{:.1} ms a scene", 1e3 * start.elapsed().as_secs_f64() / (columns * rows) as f64);
    let start = std::time::Instant::now();
    (0..48).for_each(|n| drop(scene(5, n, 256)));
    eprintln!("{:.1} ms a scene of 256", 1e3 * start.elapsed().as_secs_f64() / 48.0);
    let picture = Picture { width: columns * 2 * side, height: rows * side, rgb };
    if let Err(error) = write_picture(std::path::Path::new(&path), &picture) {
        eprintln!("{error}");
    }
}
