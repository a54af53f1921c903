// A recurrent layer over a whole sequence in one launch, its sparse weights on chip: the kernel of persistent_cuda.py.
//
// A block owns NEURONS neurons and all their gates. Each of its THREADS is PARTS lanes that hold a share of the weights
// each (dealing.py): the first HELD of a thread's slots in registers, the others in shared memory. A step: h of all
// neurons is copied into shared memory, gathered from there, multiplied and summed; the gates advance; the new h goes out.
//
// No barrier spans the blocks. A step's h lies where nothing but EMPTY lay before, so a reader waits for the numbers
// themselves: each 32-bit number is its own flag, there once it is not EMPTY. So the order of no two memory operations
// matters, and none is fenced.
//
// lane    whoever sums a share of a row's weights      slot    the place of one weight in a lane's share
// unit    one gate of one neuron and sequence          piece   four numbers of h, copied together
//
// Constants, given to the compiler:
//   THREADS, NEURONS   of a block             BATCH     sequences: 1, 2, 4, 8 or 16
//   PARTS              lanes a thread is      WORDS     neurons of all blocks times BATCH
//   SLOTS              of a lane, even        HELD      slots of a thread in registers, even
//   MOST               lanes of a row         AT_ONCE   pieces of h that a thread copies before it copies more
//   KIND               0 LSTM, 1 GRU, 2 RNN   HARD      gates clip(0.2 x + 0.5, 0, 1); of an RNN: relu
//   DELAY              clocks after its sums in which a block does not ask for others' numbers: they cannot be there, and
//                      asking holds up those that are on their way
//   PRODUCTS           0: the loop, the exchange and the gates alone: what no kernel of this kind goes below

#define EMPTY 0xffffffffu  // a NaN that arithmetic does not make

#include "gates.cuh"

#ifndef EMULATED  // tests/emulated.cpp has its own of what follows, and runs the rest on a CPU
// h is shared between blocks while they run: relaxed at the scope of the GPU, so served by L2, each number whole.
__device__ __forceinline__ uint4 arriving(const unsigned* from) {
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

__device__ __forceinline__ void publish(unsigned* to, unsigned value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" :: "l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ unsigned now() {
    unsigned clocks;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(clocks));
    return clocks;
}

// Two offsets stay in one register: the compiler would take them apart before the loop, into two.
__device__ __forceinline__ void keep_packed(unsigned& two) { asm volatile("" : "+r"(two)); }
#endif

constexpr int ROWS = NEURONS * 4;                                  // a gate of a neuron, also where a cell has fewer
constexpr int UNITS = (ROWS * BATCH + THREADS - 1) / THREADS;      // gates a thread advances
constexpr int LANES = PARTS * THREADS;
constexpr int ALL = PARTS * SLOTS;                                 // a thread's slots
constexpr int PIECES = (WORDS + 3) / 4;                            // h in pieces of four numbers
constexpr int COPIES = PIECES < AT_ONCE * THREADS ? (PIECES + THREADS - 1) / THREADS : AT_ONCE;  // a thread's, at once

__device__ __forceinline__ bool missing(uint4 v, int piece) {  // the last piece may have numbers that nobody writes
    if (PARTS <= 2 && WORDS % 4 == 0) return (v.x == EMPTY) | (v.y == EMPTY) | (v.z == EMPTY) | (v.w == EMPTY);
    return v.x == EMPTY || (4 * piece + 1 < WORDS && v.y == EMPTY) || (4 * piece + 2 < WORDS && v.z == EMPTY)
        || (4 * piece + 3 < WORDS && v.w == EMPTY);
}

constexpr int FOURS = BATCH > 4 ? BATCH / 4 : 1;  // planes of h in shared memory, four sequences each: a gather of four has no bank
                                                  // in common with its neighbours', one of more would have

// Where piece `p` of the exchange lies in shared memory, and the bytes from plane to plane.
__device__ __forceinline__ int in_plane(int p) { return FOURS == 1 ? p : p % FOURS * (WORDS / BATCH) + p / FOURS; }
constexpr int PLANE = 16 * (WORDS / BATCH);

__device__ __forceinline__ void multiply(float (&total)[BATCH], float value, const unsigned char* h, unsigned at) {
    if (BATCH == 1) {
        total[0] += value * *(const float*)(h + at);
    } else if (BATCH == 2) {
        const float2 found = *(const float2*)(h + at);
        total[0] += value * found.x;
        total[BATCH - 1] += value * found.y;
    } else {
#pragma unroll
        for (int q = 0; q < FOURS; q++) {
            const float4 found = *(const float4*)(h + at + q * PLANE);
            total[4 * q % BATCH] += value * found.x;
            total[(4 * q + 1) % BATCH] += value * found.y;
            total[(4 * q + 2) % BATCH] += value * found.z;
            total[(4 * q + 3) % BATCH] += value * found.w;
        }
    }
}

// table [N, width]              what the input adds, and the bias
// rows [steps, BATCH]           the row of it, -1 where a step is padding
// values [block, SLOTS, LANES]
// offsets [block, SLOTS/2, LANES]   of h in shared memory, in bytes, two of 16 bits
// spans [block, ROWS]           first lane of a row, and 16 bits higher one past its last
// places, fixed [4, neurons]    column of table, -1: none; the constant that a gate is, NaN: it is live
// exchange [steps + 1, stride]  h [neuron, BATCH] after each step, EMPTY at first
extern "C" __global__ void __launch_bounds__(THREADS, 1)
whole_sequence(const float* __restrict__ table, const int* __restrict__ rows, const float* __restrict__ values,
               const unsigned* __restrict__ offsets, const int* __restrict__ spans, const int* __restrict__ places,
               const float* __restrict__ fixed, unsigned* exchange, int steps, int width, int stride) {
    SHARED(memory);
    unsigned char* h_all = memory;                                   // [PIECES] of four
    float* sums = (float*)(memory + 16 * PIECES);                    // [BATCH, LANES]
    float* more_values = sums + BATCH * LANES + threadIdx.x;         // [ALL - HELD, THREADS]
    unsigned* more_offsets = (unsigned*)(more_values + (ALL - HELD) * THREADS);

    const int thread = threadIdx.x, neurons = gridDim.x * NEURONS;
    values += (size_t)blockIdx.x * SLOTS * LANES + thread;
    offsets += (size_t)blockIdx.x * (SLOTS / 2) * LANES + thread;
    float value[HELD];
    unsigned offset[HELD / 2];
    if (PRODUCTS) {
#pragma unroll
        for (int s = 0; s < HELD; s++) value[s] = values[s % SLOTS * LANES + s / SLOTS * THREADS];
#pragma unroll
        for (int s = 0; s < HELD / 2; s++) offset[s] = offsets[s % (SLOTS / 2) * LANES + s / (SLOTS / 2) * THREADS];
#pragma unroll 4
        for (int s = HELD; s < ALL; s++)
            more_values[(s - HELD) * THREADS] = values[s % SLOTS * LANES + s / SLOTS * THREADS];
#pragma unroll 4
        for (int s = HELD / 2; s < ALL / 2; s++)
            more_offsets[(s - HELD / 2) * THREADS] = offsets[s % (SLOTS / 2) * LANES + s / (SLOTS / 2) * THREADS];
    }

    // A unit is one gate of one neuron and sequence; the four of a neuron are neighbours, and each knows h and c.
    const int gate = thread & 3;
    int span[UNITS], place[UNITS], row[UNITS], following[UNITS];
    float constant[UNITS], added[UNITS], h[UNITS], c[UNITS];
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        const int unit = u * THREADS + thread, b = (unit >> 2) % BATCH, neuron = (unit >> 2) / BATCH;
        const bool exists = unit < ROWS * BATCH;
        const int line = gate * neurons + blockIdx.x * NEURONS + neuron;
        span[u] = exists ? spans[blockIdx.x * ROWS + 4 * neuron + gate] : 0;
        place[u] = exists ? places[line] : -1, constant[u] = exists ? fixed[line] : 0.0f;
        row[u] = rows[b], following[u] = rows[(steps > 1 ? BATCH : 0) + b];
        added[u] = place[u] >= 0 && row[u] >= 0 ? table[(size_t)row[u] * width + place[u]] : 0.0f;
        h[u] = c[u] = 0.0f;
    }

    unsigned since = 0;
    for (int t = 0; t < steps; t++) {
        // What the next step adds, and the row of the one after it, are asked for now and used when this step is over.
        float coming[UNITS];
        int later[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const int b = ((u * THREADS + thread) >> 2) % BATCH;
            coming[u] = place[u] >= 0 && following[u] >= 0 ? table[(size_t)following[u] * width + place[u]] : 0.0f;
            later[u] = rows[(t + 2 < steps ? t + 2 : steps - 1) * BATCH + b];
        }
        if (t > 0) {
            const unsigned* before = exchange + (size_t)t * stride;
            while (now() - since < DELAY) {}
            for (int first = thread; first < PIECES; first += COPIES * THREADS) {
                uint4 got[COPIES];
#pragma unroll
                for (int k = 0; k < COPIES; k++) got[k] = uint4{EMPTY, EMPTY, EMPTY, EMPTY};
                bool waiting;
                unsigned tries = 0;
                do {
                    if (++tries == 1u << 24) __trap();  // after many seconds: better than to hang
                    waiting = false;
#pragma unroll
                    for (int k = 0; k < COPIES; k++)
                        if (first + k * THREADS < PIECES && missing(got[k], first + k * THREADS))
                            got[k] = arriving(before + 4 * (first + k * THREADS));
#pragma unroll
                    for (int k = 0; k < COPIES; k++)
                        if (first + k * THREADS < PIECES) waiting |= missing(got[k], first + k * THREADS);
                } while (waiting);
#pragma unroll
                for (int k = 0; k < COPIES; k++)
                    if (first + k * THREADS < PIECES) ((uint4*)h_all)[in_plane(first + k * THREADS)] = got[k];
            }
            __syncthreads();
            if (PRODUCTS) {
                float total[PARTS][BATCH] = {};
#pragma unroll
                for (int s = 0; s < HELD / 2; s++) {
                    if (PARTS > 1) keep_packed(offset[s]);  // where registers are short
                    multiply(total[s / (SLOTS / 2)], value[2 * s], h_all, offset[s] & 0xffffu);
                    multiply(total[s / (SLOTS / 2)], value[2 * s + 1], h_all, offset[s] >> 16);
                }
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
#pragma unroll 4
                    for (int s = part * SLOTS < HELD ? HELD / 2 : part * SLOTS / 2; s < (part + 1) * SLOTS / 2; s++) {
                        const unsigned two = more_offsets[(s - HELD / 2) * THREADS];
                        multiply(total[part], more_values[(2 * s - HELD) * THREADS], h_all, two & 0xffffu);
                        multiply(total[part], more_values[(2 * s + 1 - HELD) * THREADS], h_all, two >> 16);
                    }
#pragma unroll
                    for (int b = 0; b < BATCH; b++) sums[b * LANES + part * THREADS + thread] = total[part][b];
                }
            }
            __syncthreads();
        }
        since = now();
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            if (PARTS <= 2 && u * THREADS + (thread & ~31) >= ROWS * BATCH) break;  // a warp without a unit is out of the way
            const int unit = u * THREADS + thread, b = (unit >> 2) % BATCH, neuron = (unit >> 2) / BATCH;
            float a = added[u];
            if (PRODUCTS && t > 0) {
                const int first = span[u] & 0xffff, count = (span[u] >> 16) - first;
                float part[2] = {};
#pragma unroll
                for (int k = 0; k < MOST; k++) part[k & 1] += k < count ? sums[b * LANES + first + k] : 0.0f;
                a += part[0] + part[1];
            }
            const int now = row[u];
            added[u] = coming[u], row[u] = following[u], following[u] = later[u];

            advance(a, constant[u], gate, now >= 0, h[u], c[u]);
            const unsigned bits = __float_as_uint(h[u]);
            if (gate == 0 && unit < ROWS * BATCH)
                publish(exchange + (size_t)(t + 1) * stride + (blockIdx.x * NEURONS + neuron) * BATCH + b,
                        bits == EMPTY ? 0x7fffffffu : bits);
        }
    }
}
