#pragma once

#include "aft/ops/operands.h"

/// M(E) for every type E of tensor elements: what a file of templates over E instantiates.
#define AFT_FOR_EACH_ELEMENT(M) M(float) M(double) M(BFloat16) M(Float16)
