// What the kernels in CUDA have in common: one step of an LSTM, GRU or RNN by four threads side by side, a gate each.
//
// KIND  0 LSTM (i f g o), 1 GRU (r z, what x and h say of n), 2 RNN (the first of the four alone counts)
// HARD  gates clip(0.2 a + 0.5, 0, 1); of an RNN: relu

#ifndef EMULATED  // tests/emulated.cpp has its own
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]

__device__ __forceinline__ float power_of_2(float a) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
    return result;
}

// Of a number from 1 to infinity; a division would provide for others.
__device__ __forceinline__ float reciprocal(float a) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
    return result;
}
#endif

constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ float tanh_of(float a) {
    return 2.0f * reciprocal(1.0f + power_of_2(-2.0f * LOG2_E * a)) - 1.0f;
}

// What lane `from` of the four has.
__device__ __forceinline__ float of_lane(float value, int from) { return __shfl_sync(0xffffffffu, value, from, 4); }

// h and c of a neuron, known to all four, after a step in which this one's gate is told `a`; kept where it is not `real`.
// constant: what the gate is when it has no weights, NaN: it is live.
__device__ __forceinline__ void advance(float a, float constant, int gate, bool real, float& h, float& c) {
    const bool candidate = KIND == 0 ? gate == 2 : KIND == 1 ? gate >= 2 : true;  // tanh, not a squashed gate
    float g;
    if (KIND == 1 && candidate) {
        g = a;
    } else {  // all four alike, tanh a = 2 sigmoid(2 a) - 1: what differs is known before the step
        const float scale = candidate ? -2.0f * LOG2_E : -LOG2_E;
        const bool twice = candidate && !(KIND == 2 && HARD), dead = constant == constant;
        const float factor = dead ? 0.0f : twice ? 2.0f : 1.0f, shift = dead ? constant : twice ? -1.0f : 0.0f;
        float squashed;
        if (KIND == 2 && HARD) squashed = a < 0.0f ? 0.0f : a;  // NaN stays
        else if (KIND == 2 || !HARD) squashed = reciprocal(1.0f + power_of_2(scale * a));
        else {
            const float hard = fminf(fmaxf(0.2f * a + 0.5f, 0.0f), 1.0f);
            squashed = KIND == 0 && candidate ? reciprocal(1.0f + power_of_2(scale * a)) : hard;
        }
        g = squashed * factor + shift;
    }
    const float g0 = of_lane(g, 0), g1 = of_lane(g, 1), g2 = of_lane(g, 2), g3 = of_lane(g, 3);
    float new_h, new_c = c;
    if (KIND == 0) {
        new_c = g1 * c + g0 * g2;
        new_h = g3 * tanh_of(new_c);
    } else if (KIND == 1) {
        const float fixed = of_lane(constant, 2);
        const float n = fixed == fixed ? fixed : tanh_of(g2 + g0 * g3);
        new_h = n + g1 * (h - n);
    } else {
        new_h = g0;
    }
    if (real) h = new_h, c = new_c;
}
