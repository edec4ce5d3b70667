//! Blocks of a product of bf16 numbers on the matrix tiles of a processor that has them (Intel's AMX: Xeons from 2023
//! on): 16 × 32 numbers times 32 × 16 in 16 cycles, where the widest vectors take 256 in f32.

use super::bf16::{BAND, Block, Tile};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether the processor has the tiles and the system lets this program use them.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XTILEDATA: libc::c_ulong = 18;
        if __cpuid_count(0, 0).eax < 7 || __cpuid_count(7, 0).edx & TILE_AND_BF16 != TILE_AND_BF16 {
            return false;
        }
        #[expect(unsafe_code, reason = "Linux asks to be asked once a process; the call takes two numbers")]
        let refused = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) };
        refused == 0
    })
}

/// The tiles of the processor that this thread runs on, set up; given back when dropped. It stays on its thread.
pub(super) struct Unit(PhantomData<*const ()>);

impl Unit {
    pub(super) fn configured() -> Unit {
        /// Eight tiles of 16 rows of 64 bytes, as `ldtilecfg` reads it.
        #[repr(C, align(64))]
        struct Shape([u8; 64]);
        let mut shape = Shape([0; 64]);
        shape.0[0] = 1;
        for tile in 0..8 {
            shape.0[16 + 2 * tile] = 64;
            shape.0[48 + tile] = BAND as u8;
        }
        assert!(available());
        #[expect(unsafe_code, reason = "reads the 64 bytes of `shape`; the processor has tiles, by the assertion")]
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &shape, options(nostack, readonly));
        }
        Unit(PhantomData)
    }

    /// As [`super::bf16::Unit::multiply`].
    pub(super) fn multiply(&self, [a0, a1]: [&[Tile]; 2], [b0, b1]: [&[Tile]; 2], out: &mut Block) {
        let across = a0.len();
        assert!(across > 0 && [a1, b0, b1].iter().all(|band| band.len() == across));
        let [a0, a1, b0, b1] = [a0, a1, b0, b1].map(<[Tile]>::as_ptr);
        const HALF: usize = 2 * BAND * BAND;
        let (upper, lower) = out.0.split_at_mut(HALF);
        #[expect(
            unsafe_code,
            reason = "reads `across` tiles of 1024 bytes from each band, which the assertion has seen, and writes 16 rows
                      of 128 bytes to each half of the block; the tiles were set up when `self` was made"
        )]
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a0} + {row}]",
                "tileloadd tmm6, [{b0} + {row}]",
                "tileloadd tmm7, [{b1} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 1024",
                "add {a1}, 1024",
                "add {b0}, 1024",
                "add {b1}, 1024",
                "dec {left}",
                "jnz 2b",
                "tilestored [{upper} + 2 * {row}], tmm0",
                "tilestored [{upper} + 2 * {row} + 64], tmm1",
                "tilestored [{lower} + 2 * {row}], tmm2",
                "tilestored [{lower} + 2 * {row} + 64], tmm3",
                a0 = inout(reg) a0 => _,
                a1 = inout(reg) a1 => _,
                b0 = inout(reg) b0 => _,
                b1 = inout(reg) b1 => _,
                left = inout(reg) across => _,
                row = in(reg) 64usize,
                upper = in(reg) upper.as_mut_ptr(),
                lower = in(reg) lower.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "the tiles were set up by this thread")]
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}
