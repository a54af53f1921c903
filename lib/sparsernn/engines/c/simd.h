/* What the paths differ in: vectors of LANES numbers, the least and the largest of two, dot products of four int8.

   Vectors are GCC's and clang's extension; with AVX-512, AVX2 and FMA, NEON with dot products, or none of them (SIMD 512, 256,
   128, 0, given to the compiler). Bytes of x are stored as the path multiplies them: q + FLIP, for VNNI wants them unsigned.
   That adds 128 times the sum of a row's weights, which its bias takes off again. */

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float f4 __attribute__((vector_size(16)));
typedef int32_t i4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));

/* A loop of so few rounds that the compiler is to write them out. */
#ifdef __clang__
#define EACH(i, count) _Pragma("unroll") for (int i = 0; i < (count); i++)
#else
#define EACH(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)
#endif

#define FLIP 0

#if SIMD == 512
#include <immintrin.h>
#define LANES 16
#define VF f16
#define VI i16
#undef FLIP
#define FLIP 128

/* Of the bound and x; x where that is NaN, in all of these. */
INLINE f16 least(f16 bound, f16 x) { return (f16)_mm512_min_ps((__m512)bound, (__m512)x); }
INLINE f16 most(f16 bound, f16 x) { return (f16)_mm512_max_ps((__m512)bound, (__m512)x); }

/* sum + dot products of four x in `quad` with four weights of each row. */
INLINE i16 dot16(i16 sum, int32_t quad, const int8_t *w)
{
    return (i16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(quad), _mm512_loadu_si512(w));
}
INLINE i8 dot8(i8 sum, int32_t quad, const int8_t *w)
{
    return (i8)_mm256_dpbusd_epi32((__m256i)sum, _mm256_set1_epi32(quad), _mm256_loadu_si256((const __m256i *)w));
}

/* LANES whole numbers from −127 to 127 as bytes. */
INLINE void to_bytes(int8_t *to, i16 whole) { _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)whole)); }

#elif SIMD == 256
#include <immintrin.h>
#define LANES 8
#define VF f8
#define VI i8

INLINE f8 least(f8 bound, f8 x) { return (f8)_mm256_min_ps((__m256)bound, (__m256)x); }
INLINE f8 most(f8 bound, f8 x) { return (f8)_mm256_max_ps((__m256)bound, (__m256)x); }

/* Pairs are added up in 16 bits: |w| is unsigned, and 2 · 127 · 127 < 2¹⁵, so that none is cut off. */
INLINE i8 dot8(i8 sum, int32_t quad, const int8_t *w)
{
    __m256i weights = _mm256_loadu_si256((const __m256i *)w), x = _mm256_set1_epi32(quad);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    return sum + (i8)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

INLINE void to_bytes(int8_t *to, i8 whole)
{
    __m256i all = (__m256i)whole;
    __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(pairs, pairs));
}

#else
#define LANES 4
INLINE void to_bytes(int8_t *to, i4 whole)
{
    for (int lane = 0; lane < LANES; lane++)
        to[lane] = (int8_t)whole[lane];
}
#define VF f4
#define VI i4

#if SIMD == 128
#include <arm_neon.h>
INLINE f4 least(f4 bound, f4 x) { return (f4)vminq_f32((float32x4_t)bound, (float32x4_t)x); }
INLINE f4 most(f4 bound, f4 x) { return (f4)vmaxq_f32((float32x4_t)bound, (float32x4_t)x); }
INLINE i4 dot4(i4 sum, int32_t quad, const int8_t *w)
{
    return (i4)vdotq_s32((int32x4_t)sum, vld1q_s8(w), vreinterpretq_s8_s32(vdupq_n_s32(quad)));
}
#else
INLINE f4 least(f4 bound, f4 x)
{
    i4 over = x > bound;
    return (f4)(((i4)bound & over) | ((i4)x & ~over));
}
INLINE f4 most(f4 bound, f4 x)
{
    i4 under = x < bound;
    return (f4)(((i4)bound & under) | ((i4)x & ~under));
}
INLINE i4 dot4(i4 sum, int32_t quad, const int8_t *w)
{
    int8_t x[4];
    memcpy(x, &quad, 4);
    for (int row = 0; row < 4; row++, w += 4)
        sum[row] += w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3];
    return sum;
}
#endif
#endif

INLINE VF load(const float *from)
{
    VF v;
    memcpy(&v, from, sizeof v);
    return v;
}
INLINE void store(float *to, VF v) { memcpy(to, &v, sizeof v); }

/* x where a bit of `where` is set, else y. */
INLINE VF pick(VI where, VF x, VF y) { return (VF)(((VI)x & where) | ((VI)y & ~where)); }
