// What tensor cores compute. Built WITHOUT sanitizers: it touches nothing of a kernel, and takes much of the time.
#include "device.h"

namespace mhr::emulation {
namespace {

// A sum as tensor cores make it (Fasi et al., PeerJ Computer Science 7, e330): every term loses the bits below the last
// that a float32 of the largest term's size has, and so does the sum. Towards zero, so that errors do not cancel. Newer
// tensor cores keep a bit or two more of a term. Terms are products of float32, or 0: none is a subnormal double.
template <int N>
float truncated_sum(const double (&products)[N], double c) {
  constexpr uint64_t kSize = ~0ull >> 1, kInfinity = 0x7ffull << 52;
  uint64_t largest = cuda::double_bits(c) & kSize;  // of sizes, which are ordered as their bits are
  for (double term : products) largest = std::max(largest, cuda::double_bits(term) & kSize);
  if (largest >= kInfinity) {
    for (double term : products) c += term;
    return float(c);
  }
  if (largest == 0) return 0;
  int last = std::max(int(largest >> 52) - 1023 - 23, -149);
  const double units = cuda::power_of_two(-last);
  int32_t sum = int32_t(c * units);  // each is below 2^24
  for (double term : products) sum += int32_t(term * units);
  for (; std::abs(sum) >> 24; ++last) sum /= 2;
  return float(sum * cuda::power_of_two(last));
}

}  // namespace

template <int K, class E>
void multiply_lanes(Lanes given, Lanes taken, uint32_t) {
  constexpr int kEach = K / 8;  // elements along k that one register holds
  double A[16][K], B[8][K];
  float C[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    Fragments v;
    std::memcpy(&v, given[lane], sizeof v);
    const int group = lane / 4, t = lane % 4;
    for (int e = 0; e < kEach; ++e) {
      for (int i = 0; i < 4; ++i) A[group + i % 2 * 8][t * kEach + i / 2 * 4 * kEach + e] = E::get(v.a[i], e);
      for (int i = 0; i < 2; ++i) B[group][t * kEach + i * 4 * kEach + e] = E::get(v.b[i], e);
    }
    for (int i = 0; i < 4; ++i) C[group + i / 2 * 8][t * 2 + i % 2] = v.c[i];
  }
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      double products[K];
      for (int k = 0; k < K; ++k) products[k] = A[m][k] * B[n][k];  // exact
      C[m][n] = truncated_sum(products, C[m][n]);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) std::memcpy(taken[lane] + 4 * i, &C[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2], 4);
}

template void multiply_lanes<16, Halves<cuda::bf16>>(Lanes, Lanes, uint32_t);
template void multiply_lanes<16, Halves<cuda::fp16>>(Lanes, Lanes, uint32_t);
template void multiply_lanes<8, Tf32>(Lanes, Lanes, uint32_t);

}  // namespace mhr::emulation
