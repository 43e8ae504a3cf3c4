// Tensor-core products of four warps together (wgmma, PTX ISA 9.7.15): compute capability 9.0 alone.
//
// B, and A where it does not come from registers, lie in shared memory as boxes of bulk_copy.cuh: rows of 64
// BF16, k along them. Sums lie over lanes as those of mma.sync do (mma.cuh): warp w of the four holds rows
// 16 w to 16 w + 15, and d[4 n + i] is element i of its fragment of columns 8 n to 8 n + 7.
//
// A product runs on behind its instruction. Before the first one, and after registers of sums or of A were
// written, stands wgmma_fence; products are closed into groups with commit, and nobody touches their
// registers or shared memory before wgmma_wait.
#pragma once
#include "bulk_copy.cuh"

namespace gpu {

/// The descriptor of an operand: rows of 128 bytes, 8 of them an atom of the swizzle. `first` is the shared
/// address of row 0 of a box, or 16 values (32 bytes) further along k for each step.
GPU_FN u64 wgmma_operand(u32 first) {
  constexpr u64 ATOM = 8 * BOX_ROW, SWIZZLE_128 = 1;
  return u64(first >> 4 & 0x3fff) | u64(1) << 16 | (ATOM >> 4) << 32 | SWIZZLE_128 << 62;
}

GPU_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GPU_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most the N newest groups run.
template <u32 N>
GPU_FN void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The 128 sums of a lane, by name and as operands.
#define NAMES \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define SUMS_8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define SUMS_32(i) SUMS_8(i), SUMS_8(i + 8), SUMS_8(i + 16), SUMS_8(i + 24)
#define SUMS SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96)

/// D = A B, or D += A B where `add`, of 64 rows by 256 columns over k = 16 in BF16, sums in F32.
GPU_FN void wgmma_m64n256k16_bf16(float (&d)[128], u64 a, u64 b, u32 add) {
  asm volatile(
      "{\n\t"
      ".reg .pred p;\n\t"
      "setp.ne.b32 p, %130, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" NAMES "}, "
      "%128, %129, p, 1, 1, 0, 0;\n\t"
      "}"
      : SUMS
      : "l"(a), "l"(b), "r"(add));
}

/// The same with A, 16 rows a warp, from registers, as fragments of m16n8k16 lie.
GPU_FN void wgmma_m64n256k16_bf16(float (&d)[128], const u32 (&a)[4], u64 b, u32 add) {
  asm volatile(
      "{\n\t"
      ".reg .pred p;\n\t"
      "setp.ne.b32 p, %133, 0;\n\t"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" NAMES "}, "
      "{%128,%129,%130,%131}, %132, p, 1, 1, 0;\n\t"
      "}"
      : SUMS
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

#undef NAMES
#undef SUMS_8
#undef SUMS_32
#undef SUMS

}  // namespace gpu
