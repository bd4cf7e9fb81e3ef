// Every wrapper of csrc/cuda/device.cuh on given bits:  conformance INPUT OUTPUT
//
// Compiled by nvcc it runs on a GPU, by g++ under the emulator; the two outputs must agree bit for bit. Products are of
// small integers, whose sums are exact in any order: what is compared is where each element of a fragment lies.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "cuda/device.cuh"

namespace mhr::cuda {

constexpr int kWordsIn = 512, kWordsOut = 32 * 64;  // of one block, which is one warp

struct Recorder {  // each lane's words, one row of 32 after another
  uint32_t* out;
  int row = 0;
  __device__ void add(uint32_t word) { out[row++ * 32 + int(threadIdx.x)] = word; }
  __device__ void add(float v) {
    uint32_t word;
    memcpy(&word, &v, 4);
    add(word);
  }
};

template <class T>
__device__ uint32_t bits16(T v) {
  uint16_t bits;
  memcpy(&bits, &v, 2);
  return bits;
}

// An integer in -8..8 in each element.
template <class T>
__device__ uint32_t small_pair(uint32_t word) {
  return pack2<T>(float(int(word & 15) - 8), float(int(word >> 4 & 15) - 8));
}

template <class T>
__device__ void convert(Recorder& r, float a, float b, uint32_t word) {
  r.add(pack2<T>(a, b));
  r.add(bits16(from_float<T>(a)));
  const float2 pair = unpack2<T>(word & 0x7bff3bffu);  // no infinities, no NaN: their payloads may differ
  r.add(pair.x);
  r.add(pair.y);
  r.add(to_float(from_float<T>(b)));
}

template <class T>
__device__ void multiply_halves(Recorder& r, const uint32_t* in) {
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = small_pair<T>(in[i * 32]);
  for (int i = 0; i < 2; ++i) b[i] = small_pair<T>(in[(4 + i) * 32]);
  float c[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  mma_16x8x16<T>(c, a, b);
  for (float v : c) r.add(v);
}

__device__ void multiply_tf32(Recorder& r, const uint32_t* in) {
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = round_tf32(float(int(in[i * 32] & 255) - 128)) | (in[i * 32] & 0x1fffu);
  for (int i = 0; i < 2; ++i) b[i] = round_tf32(float(int(in[(4 + i) * 32] & 255) - 128)) | (in[i * 32] & 0x1fffu);
  float c[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  mma_16x8x8_tf32(c, a, b);  // the low 13 bits are ignored
  for (float v : c) r.add(v);
}

__global__ void conformance_kernel(const uint32_t* input, uint32_t* output) {
  const int lane = int(threadIdx.x);
  const uint32_t* const in = input + size_t(blockIdx.x) * kWordsIn;
  Recorder r{output + size_t(blockIdx.x) * kWordsOut};
  SharedCarver carve;
  uint32_t* const tile = carve.take<uint32_t>(kWordsIn);
  uint32_t* const landed = carve.take<uint32_t>(32 * 4);

  float a, b;
  const uint32_t finite[2] = {in[lane] & 0xbfffffffu, in[32 + lane] & 0xbfffffffu};  // exponents of no infinity
  memcpy(&a, &finite[0], 4);
  memcpy(&b, &finite[1], 4);
  convert<bf16>(r, a, b, in[64 + lane]);
  convert<fp16>(r, a * 1e-3f, b, in[64 + lane]);
  r.add(round_tf32(a));

  cp_async_16(landed + lane * 4, in + lane * 4, lane % 17);
  cp_async_commit();
  cp_async_16(tile + lane * 4, in + 128 + lane * 4, 16);
  cp_async_commit();
  cp_async_wait<1>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) r.add(landed[(31 - lane) * 4 + i]);
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) r.add(tile[(31 - lane) * 4 + i]);
  __syncthreads();

  for (int i = lane; i < kWordsIn; i += 32) tile[i] = in[i];
  __syncwarp();
  uint32_t rows[4];
  ldmatrix_x4(rows, tile + lane * 12);  // rows 48 bytes apart
  for (uint32_t word : rows) r.add(word);
  ldmatrix_x4_trans(rows, tile + lane * 12);
  for (uint32_t word : rows) r.add(word);

  multiply_halves<bf16>(r, in + lane);
  multiply_halves<fp16>(r, in + lane);
  multiply_tf32(r, in + lane);

  const uint32_t word = in[lane];
  r.add(uint32_t(__shfl_sync(~0u, int(word), int(word & 31))));
  r.add(uint32_t(__shfl_xor_sync(~0u, int(word), 5)));
  r.add(uint32_t(__shfl_up_sync(~0u, int(word), 3)));
  r.add(__ballot_sync(~0u, int(word & 1)));
  r.add(uint32_t(__ffs(int(word))));
  r.add(uint32_t(__clz(int(word))));

  auto* const counts = reinterpret_cast<int*>(landed);
  counts[lane] = lane;
  __syncthreads();
  add_shared(counts + (word & 3), int(word >> 8));
  __syncthreads();
  r.add(uint32_t(counts[lane % 4]));
  while (r.row < kWordsOut / 32) r.add(0u);
}

std::vector<uint32_t> run(const std::vector<uint32_t>& input) {
  const unsigned blocks = unsigned(input.size()) / kWordsIn;
  std::vector<uint32_t> output(size_t(blocks) * kWordsOut);
  const int shared = (kWordsIn + 32 * 4) * 4;
#if defined(__CUDACC__)
  uint32_t *in = nullptr, *out = nullptr;
  const auto must = [](cudaError_t e) {
    if (e != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(e)), std::exit(1);
  };
  must(cudaMalloc(&in, input.size() * 4));
  must(cudaMalloc(&out, output.size() * 4));
  must(cudaMemcpy(in, input.data(), input.size() * 4, cudaMemcpyHostToDevice));
  const uint32_t* const given = in;
  const Stream stream = nullptr;
  const char* error = MHR_LAUNCH(conformance_kernel, dim3(blocks), dim3(32), shared, stream, given, out);
  if (error) std::fprintf(stderr, "%s\n", error), std::exit(1);
  must(cudaMemcpy(output.data(), out, output.size() * 4, cudaMemcpyDeviceToHost));
#else
  const uint32_t* in = input.data();
  uint32_t* out = output.data();
  MHR_LAUNCH(conformance_kernel, dim3(blocks), dim3(32), shared, nullptr, in, out);
#endif
  return output;
}

}  // namespace mhr::cuda

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: conformance INPUT OUTPUT\n"), 2;
  std::ifstream file(argv[1], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<uint32_t> input(bytes.size() / 4);
  std::memcpy(input.data(), bytes.data(), input.size() * 4);
  const std::vector<uint32_t> output = mhr::cuda::run(input);
  std::ofstream(argv[2], std::ios::binary).write(reinterpret_cast<const char*>(output.data()), output.size() * 4);
  return 0;
}
