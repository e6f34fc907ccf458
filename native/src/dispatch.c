/*
 * The list of instruction sets, best first; scalar is last and always there. This table is the only
 * place that chooses: a new set is one file that fills an edb_kernels, and one row here. Within a
 * set, its edb_kernels lists the pair kernels.
 */
#include <string.h>

#include "internal.h"

static const edb_isa isa_table[] = {
#if defined(__x86_64__)
    {"avx512", "x86-64 with AVX-512 as in Ice Lake and Zen 4: VBMI, VNNI, GFNI",
     EDB_CPU_AVX2 | EDB_CPU_AVX512, &edb_kernels_avx512},
    {"avxvnni", "x86-64 with AVX2 and AVX-VNNI: exact look-up, vpdpbusd for prompts",
     EDB_CPU_AVX2 | EDB_CPU_AVXVNNI, &edb_kernels_avxvnni},
    {"avx2", "x86-64 with AVX2, FMA and F16C: exact look-up by byte shuffles", EDB_CPU_AVX2,
     &edb_kernels_avx2},
#elif defined(__aarch64__)
    {"neon-i8mm", "Armv8.6 NEON with matrix products: exact look-up by tbl, smmla from two tokens on",
     EDB_CPU_DOTPROD | EDB_CPU_I8MM, &edb_kernels_neon_i8mm},
    {"neon-dotprod", "Armv8.2 NEON with dot products: exact look-up by tbl, sdot from two tokens on",
     EDB_CPU_DOTPROD, &edb_kernels_neon_dotprod},
    {"neon", "Armv8 NEON: exact look-up by tbl", EDB_CPU_BASELINE, &edb_kernels_neon},
#endif
    {"scalar", "portable C11, no vector instructions assumed", EDB_CPU_BASELINE,
     &edb_kernels_scalar},
};

enum { N_ISAS = sizeof isa_table / sizeof isa_table[0] };

static int can_run(const edb_isa *isa) {
    return (edb_cpu_features() & isa->features) == isa->features;
}

const edb_isa *edb_isa_find(const char *name) {
    for (int i = 0; i < N_ISAS; i++) {
        if (name != NULL && strcmp(name, isa_table[i].name) != 0) continue;
        if (can_run(&isa_table[i])) return &isa_table[i];
    }
    return NULL;
}

const edb_pair_kernel *edb_pair_kernel_find(const edb_kernels *kernels, const char *name) {
    for (int i = 0; kernels->pairs[i] != NULL; i++)
        if (name == NULL || strcmp(name, kernels->pairs[i]->name) == 0) return kernels->pairs[i];
    return NULL;
}

const char *edb_kernel_name(const char *isa, int32_t index) {
    const edb_isa *found = edb_isa_find(isa);
    if (found == NULL || index < 0) return NULL;
    for (int i = 0; found->kernels->pairs[i] != NULL; i++)
        if (i == index) return found->kernels->pairs[i]->name;
    return NULL;
}

int32_t edb_isa_count(void) { return N_ISAS; }

const char *edb_isa_name(int32_t index) {
    return index >= 0 && index < N_ISAS ? isa_table[index].name : NULL;
}

const char *edb_isa_description(int32_t index) {
    return index >= 0 && index < N_ISAS ? isa_table[index].description : NULL;
}

int32_t edb_isa_supported(int32_t index) {
    return index >= 0 && index < N_ISAS && can_run(&isa_table[index]);
}
