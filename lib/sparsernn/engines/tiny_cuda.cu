// A recurrent layer of few neurons over a whole sequence in one launch: the kernel of tiny_cuda.py.
//
// A block runs one sequence through one group: neurons that no other ever hears of. Four threads are a neuron. In an LSTM or
// GRU each of them is a gate and holds its row of W_hh in registers; in an RNN each holds a quarter of the one row.
// h lies in shared memory twice, a step reads one and writes the other, so that a step needs one barrier. What the input adds
// is asked for AHEAD steps before it is used, since it comes from farther away than a step takes, and which row of the
// table that is as many steps before.
//
// Constants, given to the compiler:
//   NEURONS   of a group, the same for all; a multiple of 8, of an RNN of 16      GROUPS
//   KIND, HARD   as gates.cuh says
//   WORDS     0, or how many ids there are: then it is they that are read         CLASSES   0, or of what reads the last h

#include "gates.cuh"

#if WORDS
typedef long long Row;
#else
typedef int Row;
#endif

constexpr int THREADS = 4 * NEURONS;
constexpr int COLUMNS = KIND == 2 ? NEURONS / 4 : NEURONS;  // weights that a thread holds
constexpr int AHEAD = 4;

__device__ __forceinline__ float look_up(const float* table, Row row, int width, int place) {
    if (WORDS && (row < 0 || row >= WORDS)) __trap();  // there is no such word
    return place >= 0 && row >= 0 ? table[(size_t)row * width + place] : 0.0f;
}

// table [N, width]                       what the input adds, and the bias
// rows [steps, batch]                    the row of it, -1 where a step is padding; or ids, none of them padding
// weights [GROUPS, COLUMNS, THREADS]     of W_hh; an RNN's thread has columns 16 k + 4 (thread % 4) to + 3
// places, fixed [GROUPS, THREADS]        column of table, -1: none; the constant that a gate is, NaN: it is live
// neuron_of [GROUPS, NEURONS]            which neuron of the layer it is, -1: none
// y [steps, batch, hidden]               h, 0 where a step is padding; with CLASSES what the head says of the last, [batch, CLASSES]
// head [CLASSES, NEURONS + 1]            weights and, last, a bias
extern "C" __global__ void __launch_bounds__(THREADS)
whole_sequence(const float* __restrict__ table, const Row* __restrict__ rows, const float* __restrict__ weights,
               const int* __restrict__ places, const float* __restrict__ fixed, const int* __restrict__ neuron_of,
               const float* __restrict__ head, float* __restrict__ y, int steps, int batch, int width, int hidden) {
    SHARED(memory);
    float* h_all = (float*)memory;  // [2, NEURONS]
    const int thread = threadIdx.x, gate = thread & 3, neuron = thread >> 2;
    const int group = blockIdx.x % GROUPS, sequence = blockIdx.x / GROUPS;

    float weight[COLUMNS];
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) weight[k] = weights[((size_t)group * COLUMNS + k) * THREADS + thread];
    const int place = places[group * THREADS + thread], mine = neuron_of[group * NEURONS + neuron];
    const float constant = fixed[group * THREADS + thread];
    const bool writes = !CLASSES && gate == 0 && mine >= 0;
    const int last = steps - 1;
    rows += sequence;
    if (!CLASSES) y += (size_t)sequence * hidden + (writes ? mine : 0);

    float added[AHEAD];
    Row row[AHEAD], coming[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        row[k] = rows[(size_t)min(k, last) * batch], coming[k] = rows[(size_t)min(k + AHEAD, last) * batch];
        added[k] = look_up(table, row[k], width, place);
    }
    float h = 0.0f, c = 0.0f;
    if (gate == 0) h_all[neuron] = 0.0f;
    __syncthreads();

    for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int t = first + k;
            if (t < steps) {
                const float from_input = added[k];
                const bool real = row[k] >= 0;
                row[k] = coming[k];
                added[k] = look_up(table, row[k], width, place);
                coming[k] = rows[(size_t)min(t + 2 * AHEAD, last) * batch];

                const float4* h_now = (const float4*)(h_all + (k & 1) * NEURONS);
                float sum[4] = {};
#pragma unroll
                for (int q = 0; q < COLUMNS / 4; q++) {
                    const float4 some = h_now[KIND == 2 ? 4 * q + gate : q];
                    sum[0] += weight[4 * q] * some.x, sum[1] += weight[4 * q + 1] * some.y;
                    sum[2] += weight[4 * q + 2] * some.z, sum[3] += weight[4 * q + 3] * some.w;
                }
                float a = (sum[0] + sum[1]) + (sum[2] + sum[3]);
                if (KIND == 2) {
                    a += __shfl_sync(0xffffffffu, a, gate ^ 1, 4);
                    a += __shfl_sync(0xffffffffu, a, gate ^ 2, 4);
                }
                advance(from_input + a, constant, gate, real, h, c);
                if (gate == 0) h_all[(1 - (k & 1)) * NEURONS + neuron] = h;
                if (writes) y[(size_t)t * batch * hidden] = real ? h : 0.0f;
                __syncthreads();
            }
        }
    }
    if (CLASSES) {  // a warp a class
        const float* h_last = h_all + (steps & 1) * NEURONS;
        const int lane = thread % 32;
        for (int k = thread / 32; k < CLASSES; k += THREADS / 32) {
            float sum = lane == 0 ? head[k * (NEURONS + 1) + NEURONS] : 0.0f;
            for (int n = lane; n < NEURONS; n += 32) sum += head[k * (NEURONS + 1) + n] * h_last[n];
#pragma unroll
            for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_sync(0xffffffffu, sum, lane ^ apart, 32);
            if (lane == 0) y[sequence * CLASSES + k] = sum;
        }
    }
}
