/* Which of the paths this processor can run, a bit each in the order of build.PATHS: compiled without any of them. */

#if defined(__x86_64__) || defined(_M_X64)
int sparsernn_paths(void)
{
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512vnni");
    return avx512 | avx2 << 1 | 8;
}
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
int sparsernn_paths(void)
{
    return (getauxval(AT_HWCAP) >> 20 & 1) << 2 | 8; /* HWCAP_ASIMDDP: dot products of four int8 */
}
#elif defined(__aarch64__) && defined(__APPLE__)
int sparsernn_paths(void)
{
    return 4 | 8; /* every Mac of this kind has them */
}
#else
int sparsernn_paths(void)
{
    return 8;
}
#endif
