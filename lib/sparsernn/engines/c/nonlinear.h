/* e to the x, the logistic function and tanh, within 2e-7 of the exact ones; NaN stays NaN. */

#define ROUND 12582912.0f /* 1.5 · 2²³: a number added to it loses its fraction, and stands in the low bits */

/* 2 to the t, t within ±126: a polynomial (Chebyshev's nodes, 1e-7 off) around the nearest whole number, whose power is the
   exponent's bits. */
INLINE VF exp2_of(VF t)
{
    VF shifted = t + ROUND, f = t - (shifted - ROUND);
    VF square = f * f, high = f * 1.33909e-3f + 9.67603e-3f; /* by pairs: a step of few neurons waits for nothing else */
    VF middle = f * 5.550357e-2f + 2.4022107e-1f, low = f * 6.9314719e-1f + 1.00000008f;
    VF p = (high * square + middle) * square + low;
    return (VF)((VI)p + ((VI)shifted << 23));
}

/* 1 / (1 + e to the −x·times); the bound keeps powers finite, and there nothing is left to 0 and 1. */
INLINE VF logistic_of(VF x, float times)
{
    VF bound = (VF){0} + 126.0f;
    VF t = most(-bound, least(bound, x * (-1.4426950f * times)));
    return 1.0f / (1.0f + exp2_of(t));
}

INLINE VF logistic(VF x) { return logistic_of(x, 1.0f); }
INLINE VF tanh_of(VF x) { return 2.0f * logistic_of(x, 2.0f) - 1.0f; }

/* The papers' hard gate, clip(0.2 x + 0.5, 0, 1). */
INLINE VF hard(VF x) { return most((VF){0}, least((VF){0} + 1.0f, 0.2f * x + 0.5f)); }
