// What the kernels in CUDA have in common: one step of an LSTM, GRU or RNN by four threads side by side, a gate each.
//
// KIND  0 LSTM (i f g o), 1 GRU (r z, what x and h say of n), 2 RNN (the first of the four alone counts)
// HARD  gates clip(0.2 a + 0.5, 0, 1); of an RNN: relu

#ifndef EMULATED  // tests/emulated.cpp has its own
#define SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

__device__ __forceinline__ float sigmoid(float a) { return 1.0f / (1.0f + expf(-a)); }

__device__ __forceinline__ float tanh_of(float a) { return 2.0f * sigmoid(2.0f * a) - 1.0f; }

// What lane `from` of the four has.
__device__ __forceinline__ float of_lane(float value, int from) { return __shfl_sync(0xffffffffu, value, from, 4); }

// h and c of a neuron, known to all four, after a step in which this one's gate is told `a`; kept where it is not `real`.
// constant: what the gate is when it has no weights, NaN: it is live.
__device__ __forceinline__ void advance(float a, float constant, int gate, bool real, float& h, float& c) {
    float g;
    if (KIND == 2) {
        g = HARD ? fmaxf(a, 0.0f) : tanh_of(a);
    } else if (KIND == 1) {
        const float squashed = HARD ? fminf(fmaxf(0.2f * a + 0.5f, 0.0f), 1.0f) : sigmoid(a);
        g = gate >= 2 ? a : squashed;
    } else if (HARD) {
        g = gate == 2 ? tanh_of(a) : fminf(fmaxf(0.2f * a + 0.5f, 0.0f), 1.0f);
    } else {  // tanh a = 2 sigmoid(2 a) - 1, so that the four do the same
        const float squashed = sigmoid(gate == 2 ? 2.0f * a : a);
        g = gate == 2 ? 2.0f * squashed - 1.0f : squashed;
    }
    if (!(KIND == 1 && gate >= 2) && constant == constant) g = constant;
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
