// CUDA C++ for a host compiler: what nvcc would have predefined, in three parts.
#pragma once
#include "language.hpp"
#include "interface.hpp"
#include "device_functions.hpp"
