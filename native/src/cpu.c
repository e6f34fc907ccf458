/* What this CPU, and the operating system that runs on it, can execute. */
#include "internal.h"

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

/* Register state that the system saves on a context switch (XCR0). */
static uint64_t saved_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

uint32_t edb_cpu_features(void) {
    enum { OSXSAVE = 1 << 27, AVX = 1 << 28, FMA = 1 << 12, F16C = 1 << 29 }; /* leaf 1, ecx */
    const uint32_t AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;
    enum { VBMI = 1 << 1, GFNI = 1 << 8, VNNI = 1 << 11 }; /* leaf 7, ecx */
    enum { BITALG = 1 << 12, VPOPCNTDQ = 1 << 14 };        /* leaf 7, ecx */
    enum { XMM_YMM = 0x06, MASKS_ZMM = 0xe0 };             /* XCR0 */
    uint32_t eax, ebx, ecx, edx, features = EDB_CPU_BASELINE;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
    uint32_t needed = OSXSAVE | AVX | FMA | F16C;
    if ((ecx & needed) != needed || (saved_state() & XMM_YMM) != XMM_YMM) return features;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
    if (ebx & AVX2) features |= EDB_CPU_AVX2;

    needed = F | DQ | BW | VL;
    uint32_t needed_ecx = VBMI | GFNI | VNNI | BITALG | VPOPCNTDQ;
    if ((ebx & needed) == needed && (ecx & needed_ecx) == needed_ecx &&
        (saved_state() & MASKS_ZMM) == MASKS_ZMM)
        features |= EDB_CPU_AVX512;
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

uint32_t edb_cpu_features(void) {
    enum { ASIMDDP = 1 << 20 }; /* HWCAP_ASIMDDP; older headers lack the name */
    return getauxval(AT_HWCAP) & ASIMDDP ? EDB_CPU_DOTPROD : EDB_CPU_BASELINE;
}

#else

uint32_t edb_cpu_features(void) { return EDB_CPU_BASELINE; }

#endif
