// A barrier of all blocks of a cooperative launch, which are on the device at once.
#pragma once
#include "gpu.cuh"

namespace gpu {

/// What blocks wrote before `arrive` the others see behind `wait`. Between the two a block may do what nobody
/// waits for. All threads of a block together; `arrived` is zero before the launch.
class grid_barrier {
 public:
  GPU_FN explicit grid_barrier(u32* arrived) : arrived_(arrived) {}

  GPU_FN void arrive() {
    // The barrier puts the writes of all threads before the fence of the first.
    __syncthreads();
    wanted_ += gridDim.x;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived_, 1u);
    }
  }

  GPU_FN void wait() const {
    if (threadIdx.x == 0) {
      // Counts wrap around; no block is more than a barrier ahead.
      while (int(*static_cast<volatile u32*>(arrived_) - wanted_) < 0) {
      }
      __threadfence();
    }
    __syncthreads();
  }

  GPU_FN void sync() {
    arrive();
    wait();
  }

 private:
  u32* arrived_;
  u32 wanted_ = 0;
};

}  // namespace gpu
