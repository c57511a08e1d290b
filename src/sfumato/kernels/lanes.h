// As many floats as one register holds. GCC takes longer vectors apart through memory.

#pragma once

#include <cstdint>

#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));  // found anywhere, so aligned as one number
typedef int32_t Whole __attribute__((vector_size(LANES * sizeof(float))));

inline Lanes load(const float* at) { return *reinterpret_cast<const Lanes*>(at); }
inline void store(float* at, Lanes value) { *reinterpret_cast<Lanes*>(at) = value; }
