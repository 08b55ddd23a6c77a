// Vector traits: the few operations the CPU kernels need, per instruction set.
//
// FD_ISA names the set this unit is compiled for (scalar, avx2, avx512) and FD_BITS its vector width;
// everything lands in a namespace of that name, because an inline function shared between units could be kept
// in a version that the machine cannot run.
//
// Words:    one vector of 32-bit lanes, as unsigned words and as float32, for Philox and the normals.
// State<T>: one vector of the state type T, with loads from and stores to every storage type.
#pragma once

#if !defined(FD_ISA) || !defined(FD_BITS)
#error "compile this unit with -DFD_ISA=scalar|avx2|avx512 and -DFD_BITS=0|256|512"
#endif

#define FD_INLINE static inline __attribute__((always_inline))

#if FD_BITS == 0
#include "vec_scalar.h"
#elif FD_BITS == 256
#include "vec_avx2.h"
#else
#include "vec_avx512.h"
#endif
