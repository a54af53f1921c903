// A recurrent layer of few neurons over a whole sequence in one launch: the kernel of tiny_cuda.py.
//
// A block runs one sequence through one group: neurons that no other ever hears of. Four threads are a neuron. In an LSTM or
// GRU each of them is a gate and holds its row of W_hh in registers; in an RNN each holds a quarter of the one row.
// h lies in shared memory twice, a step reads one and writes the other, so that a step needs one barrier; of at most 8 neurons
// it goes from thread to thread. What the input adds
// is asked for AHEAD steps before it is used, since it comes from farther away than a step takes, and which row of the
// table that is as many steps before.
//
// Constants, given to the compiler:
//   NEURONS   of a group, the same for all; a multiple of 8, of an RNN of 16      GROUPS
//   KIND, HARD   as gates.cuh says
//   IDS       1: ids are read, 0: rows of the table         CLASSES   0, or of what reads the last h

#include "gates.cuh"

#if IDS
typedef long long Row;
#else
typedef int Row;
#endif

constexpr int THREADS = 4 * NEURONS;
constexpr int COLUMNS = KIND == 2 ? NEURONS / 4 : NEURONS;  // weights that a thread holds
constexpr int AT_ONCE = 8;  // pieces of h, of four registers, that a thread has asked for at once
constexpr int AHEAD = 4;  // even: so h ends where it began
constexpr bool ONE_WARP = THREADS == 32;  // then h goes from thread to thread, and nobody waits

__device__ __forceinline__ float look_up(const float* table, Row row, int width, int place, int words, bool& wrong) {
    const bool there = row >= 0 && (!IDS || row < words);
    wrong |= IDS && !there;
    return place >= 0 && there ? table[(size_t)row * width + place] : 0.0f;
}

// table [N, width]                       what the input adds, and the bias
// rows [steps, batch]                    the row of it, -1 where a step is padding; or ids, none of them padding
// weights [GROUPS, COLUMNS, THREADS]     of W_hh; an RNN's thread has columns 16 k + 4 (thread % 4) to + 3
// places, fixed [GROUPS, THREADS]        column of table, -1: none; the constant that a gate is, NaN: it is live
// neuron_of [GROUPS, NEURONS]            which neuron of the layer it is, -1: none
// y [steps, batch, hidden]               h, 0 where a step is padding; with CLASSES what the head says of the last, [batch, CLASSES]
// words                                  ids that there are; any other ends the launch in a fault
// head [CLASSES, NEURONS + 1]            weights and, last, a bias
extern "C" __global__ void __launch_bounds__(THREADS)
whole_sequence(const float* __restrict__ table, const Row* __restrict__ rows, const float* __restrict__ weights,
               const int* __restrict__ places, const float* __restrict__ fixed, const int* __restrict__ neuron_of,
               const float* __restrict__ head, float* __restrict__ y, int steps, int batch, int width, int hidden,
               int words) {
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

    bool wrong = false;
    float added[AHEAD];
    Row row[AHEAD], coming[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        row[k] = rows[(size_t)min(k, last) * batch], coming[k] = rows[(size_t)min(k + AHEAD, last) * batch];
        added[k] = look_up(table, row[k], width, place, words, wrong);
    }
    float h = 0.0f, c = 0.0f;
    if (gate == 0) h_all[neuron] = 0.0f;
    __syncthreads();

    // Steps past the last change nothing; without them loads would be waited for where the loop may end.
    for (int first = 0; first < steps; first += AHEAD) {
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int t = first + k;
            const float from_input = added[k];
            const bool real = row[k] >= 0 && t < steps;
            row[k] = coming[k];
            added[k] = look_up(table, row[k], width, place, words, wrong);
            coming[k] = rows[(size_t)min(t + 2 * AHEAD, last) * batch];

            float sum[4] = {from_input, 0.0f, 0.0f, 0.0f};
            if (ONE_WARP) {
#pragma unroll
                for (int n = 0; n < NEURONS; n++) sum[n & 3] += weight[n] * __shfl_sync(0xffffffffu, h, 4 * n, 32);
            } else {
                const float4* h_now = (const float4*)(h_all + (k & 1) * NEURONS);
#pragma unroll
                for (int from = 0; from < COLUMNS / 4; from += AT_ONCE) {
                    float4 some[AT_ONCE];
#pragma unroll
                    for (int q = 0; q < AT_ONCE; q++)
                        if (from + q < COLUMNS / 4) some[q] = h_now[KIND == 2 ? 4 * (from + q) + gate : from + q];
#pragma unroll
                    for (int q = 0; q < AT_ONCE; q++) {
                        if (from + q < COLUMNS / 4) {
                            const float* four = weight + 4 * (from + q);
                            sum[0] += four[0] * some[q].x, sum[1] += four[1] * some[q].y;
                            sum[2] += four[2] * some[q].z, sum[3] += four[3] * some[q].w;
                        }
                    }
                }
            }
            float a = (sum[0] + sum[1]) + (sum[2] + sum[3]);
            if (KIND == 2) {
                a += __shfl_sync(0xffffffffu, a, gate ^ 1, 4);
                a += __shfl_sync(0xffffffffu, a, gate ^ 2, 4);
            }
            advance(a, constant, gate, real, h, c);
            if (!ONE_WARP && gate == 0) h_all[(1 - (k & 1)) * NEURONS + neuron] = h;
            if (writes && t < steps) y[(size_t)t * batch * hidden] = real ? h : 0.0f;
            if (!ONE_WARP) __syncthreads();
        }
    }
    if (wrong) __trap();  // there is no such word
    if (CLASSES) {  // a warp a class
        if (ONE_WARP) {
            if (gate == 0) h_all[neuron] = h;
            __syncthreads();
        }
        const int lane = thread % 32;
        for (int k = thread / 32; k < CLASSES; k += THREADS / 32) {
            float sum = lane == 0 ? head[k * (NEURONS + 1) + NEURONS] : 0.0f;
            for (int n = lane; n < NEURONS; n += 32) sum += head[k * (NEURONS + 1) + n] * h_all[n];
#pragma unroll
            for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_sync(0xffffffffu, sum, lane ^ apart, 32);
            if (lane == 0) y[sequence * CLASSES + k] = sum;
        }
    }
}
