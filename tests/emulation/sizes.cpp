// Prints what the launchers decide from sizes alone, as JSON: shared memory, threads and the cut of the work.
//   sizes N I O R [N I O R ...]   for bf16 and segments of equal length, 8 of them
#include <cstdio>
#include <cstdlib>

#include "cuda/routed_adapter.cuh"

using namespace mhr::cuda;

// Threads, shared memory, and the elements of the activations that one step takes.
void shape(const char* name, int threads, int shared, int elements) {
  std::printf("\"%s\": [%d, %d, %d], ", name, threads, shared, elements);
}
template <class S>
void expand_shape(const char* name) {
  shape(name, S::kThreads, S::shared_bytes(1), S::kTokens * S::kStep);
}
template <class S>
void shrink_shape(const char* name) {
  shape(name, S::kThreads, S::kShared, S::kTokens * S::kStep);
}
template <int RP>
void shapes() {
  using O = OuterShape<bf16, RP>;
  std::printf("\"%d\": {", RP);
  shrink_shape<ShrinkShape<bf16, RP, kLongTile>>("shrink");
  shrink_shape<ShrinkShape<bf16, RP, kShortTile>>("shrink_short");
  expand_shape<ExpandShape<bf16, RP, kLongTile, false>>("expand");
  expand_shape<ExpandShape<bf16, RP, kShortTile, false>>("expand_short");
  expand_shape<ExpandShape<bf16, RP, kLongTile, true>>("expand_transposed");
  expand_shape<ExpandShape<bf16, RP, kShortTile, true>>("expand_transposed_short");
  shape("outer_dy", O::kThreads, O::shared_bytes(true), O::kTokens * O::kColumns);
  constexpr int kMostTokens = kMostChunkTokens * int(sizeof(int));
  shape("outer_dy_by_rows", O::kThreads, O::shared_bytes(true) + kMostTokens, O::kTokens * O::kColumns);
  shape("outer_x_by_rows", O::kThreads, O::shared_bytes(false) + kMostTokens, O::kTokens * O::kColumns);
  std::printf("\"outer_x\": [%d, %d, %d]}", O::kThreads, O::shared_bytes(false), O::kTokens * O::kColumns);
}

int main(int argc, char** argv) {
  std::printf("{\"kernels\": {");
  shapes<16>();
  std::printf(", ");
  shapes<32>();
  std::printf(", ");
  shapes<64>();
  std::printf("}, \"plans\": [");
  for (int i = 1; i + 3 < argc; i += 4) {
    const int64_t n = std::atoll(argv[i]), n_in = std::atoll(argv[i + 1]), n_out = std::atoll(argv[i + 2]),
                  rank = std::atoll(argv[i + 3]);
    const Routing routing{n, 8, nullptr};
    RoutedAdapterForward f{};
    f.routing = routing;
    f.in_features = n_in, f.out_features = n_out, f.rank = rank, f.n_rows_a = f.n_rows_b = 8;
    RoutedAdapterBackwardDy dy{};
    dy.routing = routing;
    dy.out_features = n_out, dy.rank = rank, dy.n_rows_b = 8;
    RoutedAdapterBackwardX x{};
    x.routing = routing;
    x.in_features = n_in, x.rank = rank, x.n_rows_a = 8;
    const ForwardPass<bf16> forward(f, nullptr);
    const BackwardDyPass<bf16> pass_dy(dy, nullptr);
    const BackwardXPass<bf16> pass_x(x, nullptr);
    std::printf("%s{\"ranges\": %d, \"chunks\": %d, \"groups\": %d, \"chunks_x\": %d, \"scratch\": [%zu, %zu, %zu]}",
                i > 1 ? ", " : "", forward.plan.ranges, pass_dy.plan.chunks, pass_dy.plan.groups, pass_x.plan.chunks,
                forward.workspace.used, pass_dy.workspace.used, pass_x.workspace.used);
  }
  std::printf("]}\n");
}
