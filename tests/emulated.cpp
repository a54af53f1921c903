// A CUDA kernel on a CPU: every thread of every block is a fiber of its own, and a fiber gives way at each barrier,
// shuffle and wait. Whose turn it is next is drawn, so what depends on an order that no barrier makes comes out wrong.
// Compiled with -DSOURCE="the .cu file" and the kernel's constants.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define EMULATED
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED(name) unsigned char* name = current->block->shared.data()

using std::min;
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct Index { int x; };

struct Barrier {
    int expected, arrived = 0, generation = 0;
};
struct Warp {
    Barrier barrier{32};
    float offered[32];
};
struct Block {
    int number;
    Barrier barrier;
    std::vector<unsigned char> shared;
    std::vector<Warp> warps;
};
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Block* block;
    int thread;
    bool done;
};

static Fiber* current;
static ucontext_t scheduler;
static Index gridDim;
#define threadIdx (Index{current->thread})
#define blockIdx (Index{current->block->number})

static void give_way() { swapcontext(&current->context, &scheduler); }

static void meet(Barrier& barrier) {
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation++;
    }
    do give_way();
    while (barrier.generation == generation);
}

static void __syncthreads() { meet(current->block->barrier); }

static float __shfl_sync(unsigned, float value, int source, int width) {
    Warp& warp = current->block->warps[current->thread / 32];
    const int lane = current->thread % 32;
    warp.offered[lane] = value;
    meet(warp.barrier);
    const float found = warp.offered[lane / width * width + source];
    meet(warp.barrier);
    return found;
}


static void __trap() { abort(); }

static unsigned __float_as_uint(float a) {
    unsigned bits;
    memcpy(&bits, &a, 4);
    return bits;
}

static uint4 arriving(const unsigned* from) {
    give_way();
    uint4 v;
    memcpy(&v, from, 16);
    return v;
}

static float power_of_2(float a) { return exp2f(a); }
static float reciprocal(float a) { return 1.0f / a; }

static unsigned now() {
    static unsigned clocks = 0;
    return clocks += 1000;
}

static void keep_packed(unsigned&) {}

static void publish(unsigned* to, unsigned value) {
    *to = value;
    give_way();
}

#include SOURCE

static void* const* given;

template <class T> static T argument(int i) {
    if constexpr (std::is_pointer_v<T>) return (T)given[i];
    else return *(T*)given[i];
}

template <class... T, int... I> static void call(void kernel(T...), std::integer_sequence<int, I...>) {
    kernel(argument<T>(I)...);
}

template <class... T> static void call(void kernel(T...)) { call(kernel, std::make_integer_sequence<int, sizeof...(T)>()); }

static void enter() {
    call(whole_sequence);
    current->done = true;
    give_way();
}

// 0, or 1 if the threads have not ended after `patience` rounds: some wait for what does not come.
extern "C" int run(int blocks, int threads, int shared, void* const* arguments, unsigned seed, long patience) {
    gridDim.x = blocks;
    given = arguments;
    std::vector<Block> all(blocks);
    std::vector<Fiber> fibers(blocks * threads);
    for (int b = 0; b < blocks; b++) {
        all[b].number = b;
        all[b].barrier.expected = threads;
        all[b].shared.assign(shared, 0xcc);
        all[b].warps.resize(threads / 32);
    }
    for (int i = 0; i < blocks * threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.block = &all[i / threads], fiber.thread = i % threads, fiber.done = false;
        fiber.stack.resize(1 << 15);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    std::vector<Fiber*> order;
    for (Fiber& fiber : fibers) order.push_back(&fiber);
    while (!order.empty()) {
        if (patience-- == 0) return 1;
        for (size_t i = order.size() - 1; i > 0; i--) {
            seed = 1664525 * seed + 1013904223;
            std::swap(order[i], order[(seed >> 8) % (i + 1)]);
        }
        std::vector<Fiber*> remaining;
        for (Fiber* fiber : order) {
            current = fiber;
            swapcontext(&scheduler, &fiber->context);
            if (!fiber->done) remaining.push_back(fiber);
        }
        order = remaining;
    }
    return 0;
}
