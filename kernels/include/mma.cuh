// Tensor-core products of one warp (mma.sync) and the loads that feed them (ldmatrix): sm_80 and newer.
//
// Fragments, after PTX ISA 9.7.14.5; every lane holds a part, with g = lane / 4 and t = lane % 4:
//
//   m16n8k16, 16-bit inputs                       m16n8k8, TF32 inputs
//   A 16 x 16, two columns a register (low first)  A 16 x 8, one value a register
//     a0 row g,     columns 2t, 2t+1                 a0 row g,     column t
//     a1 row g + 8, columns 2t, 2t+1                 a1 row g + 8, column t
//     a2 row g,     columns 2t+8, 2t+9               a2 row g,     column t + 4
//     a3 row g + 8, columns 2t+8, 2t+9               a3 row g + 8, column t + 4
//   B 16 x 8, two rows a register (low first)      B 8 x 8
//     b0 rows 2t, 2t+1,   column g                   b0 row t,     column g
//     b1 rows 2t+8, 2t+9, column g                   b1 row t + 4, column g
//   C and D 16 x 8, F32, the same for both shapes
//     c0, c1 row g,     columns 2t, 2t+1
//     c2, c3 row g + 8, columns 2t, 2t+1
//
// The order is a1 before a2: down the rows first. Two D fragments side by side (columns 0-7 and 8-15), packed
// in pairs, are an A fragment: d0 d1 -> a0, d2 d3 -> a1 of the left one, a2 and a3 of the right. So a hidden
// layer's result feeds the next product from registers.
#pragma once
#include "async_copy.cuh"

namespace gpu {

/// D += A B over k = 16 in BF16, sums in F32; all 32 lanes together. In place: a C of its own costs moves.
GPU_FN void mma_m16n8k16_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// The same with IEEE half inputs.
GPU_FN void mma_m16n8k16_f16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// D += A B over k = 8 in TF32: inputs are F32 bits whose lower 13 the instruction does not read.
GPU_FN void mma_m16n8k8_tf32(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// F32 to the nearest TF32, ties away from zero, in F32 bits.
GPU_FN u32 to_tf32(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

/// ReLU in one instruction (max.NaN); NaN stays NaN, though not with its bits, and -0 becomes 0.
GPU_FN float relu_nan(float x) {
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
}

/// Loads 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 m + i gives the address of row i of
/// matrix m, on a multiple of 16 bytes (with x1 and x2 the other lanes' addresses are not used); every lane
/// gets, of each matrix, elements 2t and 2t+1 of row g.
GPU_FN void ldmatrix_x1(u32 (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
GPU_FN void ldmatrix_x2(u32 (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
GPU_FN void ldmatrix_x4(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

/// The same of the transposed matrices: elements (2t, g) and (2t+1, g), as B wants them from rows of k.
GPU_FN void ldmatrix_x1_trans(u32 (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
GPU_FN void ldmatrix_x2_trans(u32 (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
GPU_FN void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

}  // namespace gpu
