/* What this CPU, and the operating system that runs on it, can execute, and on how many fast cores. */
#include "internal.h"

#if defined(__APPLE__)
#include <sys/sysctl.h>

/* A number that the system knows by this name; 0 if it does not. */
static int32_t system_number(const char *name) {
    int32_t value = 0;
    size_t bytes = sizeof value;
    return sysctlbyname(name, &value, &bytes, NULL, 0) == 0 && bytes == sizeof value ? value : 0;
}
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

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
    enum { AVX_VNNI = 1 << 4 };                            /* leaf 7, subleaf 1, eax */
    enum { XMM_YMM = 0x06, MASKS_ZMM = 0xe0 };             /* XCR0 */
    uint32_t eax, ebx, ecx, edx, features = EDB_CPU_BASELINE;

    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return features;
    uint32_t needed = OSXSAVE | AVX | FMA | F16C;
    if ((ecx & needed) != needed || (saved_state() & XMM_YMM) != XMM_YMM) return features;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return features;
    if (ebx & AVX2) features |= EDB_CPU_AVX2;
    uint32_t last_subleaf = eax;

    needed = F | DQ | BW | VL;
    uint32_t needed_ecx = VBMI | GFNI | VNNI | BITALG | VPOPCNTDQ;
    if ((ebx & needed) == needed && (ecx & needed_ecx) == needed_ecx &&
        (saved_state() & MASKS_ZMM) == MASKS_ZMM)
        features |= EDB_CPU_AVX512;

    if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & AVX_VNNI))
        features |= EDB_CPU_AVXVNNI;
    return features;
}

#elif defined(__aarch64__) && defined(__linux__)

#include <sys/auxv.h>

uint32_t edb_cpu_features(void) {
    enum { ASIMDDP = 1 << 20, I8MM = 1 << 13 }; /* HWCAP_, HWCAP2_; older headers lack the names */
    return (getauxval(AT_HWCAP) & ASIMDDP ? EDB_CPU_DOTPROD : 0) |
           (getauxval(AT_HWCAP2) & I8MM ? EDB_CPU_I8MM : 0);
}

#elif defined(__aarch64__) && defined(__APPLE__)

uint32_t edb_cpu_features(void) {
    return (system_number("hw.optional.arm.FEAT_DotProd") ? EDB_CPU_DOTPROD : 0) |
           (system_number("hw.optional.arm.FEAT_I8MM") ? EDB_CPU_I8MM : 0);
}

#elif defined(__aarch64__) && defined(_WIN32)

uint32_t edb_cpu_features(void) {
    /* PF_ARM_V82_DP_, PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE; older headers lack the names */
    enum { DOT_PRODUCTS = 43, MATRIX_PRODUCTS = 66 };
    return (IsProcessorFeaturePresent(DOT_PRODUCTS) ? EDB_CPU_DOTPROD : 0) |
           (IsProcessorFeaturePresent(MATRIX_PRODUCTS) ? EDB_CPU_I8MM : 0);
}

#else

uint32_t edb_cpu_features(void) { return EDB_CPU_BASELINE; }

#endif

_Atomic(edb_fetch) edb_fetch_here = EDB_FAR;

#if defined(__x86_64__) || defined(__i386__)

/* Near: AMD's families from Zen 5 on. Lead: Intel. */
edb_fetch edb_cpu_fetch(void) {
    enum { ZEN_5 = 26 };
    uint32_t eax, ebx, ecx, edx;
    if (!__get_cpuid(0, &eax, &ebx, &ecx, &edx)) return EDB_FAR;
    if (ebx == signature_INTEL_ebx && ecx == signature_INTEL_ecx && edx == signature_INTEL_edx)
        return EDB_LEAD;
    if (ebx != signature_AMD_ebx || ecx != signature_AMD_ecx || edx != signature_AMD_edx)
        return EDB_FAR;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return EDB_FAR;
    uint32_t family = eax >> 8 & 15;
    if (family == 15) family += eax >> 20 & 255;
    return family >= ZEN_5 ? EDB_NEAR : EDB_FAR;
}

#else

edb_fetch edb_cpu_fetch(void) { return EDB_FAR; }

#endif

#if defined(__APPLE__)

int32_t edb_fast_cores(void) {
    int32_t fast = system_number("hw.perflevel0.physicalcpu"); /* not on macOS 11 and before */
    return fast > 0 ? fast : system_number("hw.physicalcpu");
}

#elif defined(_WIN32)

/* Whether the process may use one of a core's hardware threads; a mask covers the first 64. */
static int may_use(const PROCESSOR_RELATIONSHIP *core) {
    DWORD_PTR own, all;
    if (GetActiveProcessorGroupCount() > 1) return 1;
    if (!GetProcessAffinityMask(GetCurrentProcess(), &own, &all)) return 1;
    return (core->GroupMask[0].Mask & own) != 0;
}

int32_t edb_fast_cores(void) {
    _Alignas(8) char records[32768]; /* of 48 bytes a core: ample for 256 */
    DWORD bytes = sizeof records;
    SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *record = (void *)records;
    if (!GetLogicalProcessorInformationEx(RelationProcessorCore, record, &bytes)) return 0;
    int32_t fast = 0;
    BYTE fastest = 0;
    for (DWORD at = 0; at < bytes; at += record->Size) {
        record = (void *)(records + at);
        const PROCESSOR_RELATIONSHIP *core = &record->Processor;
        BYTE speed = ((const BYTE *)core)[1]; /* EfficiencyClass; headers before 2021 lack it */
        if (!may_use(core) || speed < fastest) continue;
        if (speed > fastest) fast = 0;
        fastest = speed;
        fast++;
    }
    return fast;
}

#else

int32_t edb_fast_cores(void) { return 0; }

#endif
