// Launches that start early: before the one ahead of them in a stream has ended (programmatic dependent
// launch, PTX ISA 9.7.13, griddepcontrol), so that its last blocks hide their way to the device. On compute
// capability 9.0 and newer, where the host asks for it; else both are nothing.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// Waits until the launch ahead has ended and what it wrote can be read. Before it a kernel that may start
/// early uses no global memory.
GPU_FN void wait_for_launch_ahead() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the launch behind start as soon as every block of this one has started; it waits by itself.
GPU_FN void let_next_launch_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// What a kernel that may start early begins with.
GPU_FN void begin_early() {
  wait_for_launch_ahead();
  let_next_launch_start();
}

}  // namespace gpu
