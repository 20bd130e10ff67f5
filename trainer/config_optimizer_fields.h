// The keys of the optimizer and its schedule: a part of ConfigFields.
#ifndef BITSHARD_TRAINER_CONFIG_OPTIMIZER_FIELDS_H_
#define BITSHARD_TRAINER_CONFIG_OPTIMIZER_FIELDS_H_

#include <vector>

#include "trainer/config_binder.h"

namespace bitshard::trainer {

std::vector<ConfigField> OptimizerFields();

}  // namespace bitshard::trainer

#endif  // BITSHARD_TRAINER_CONFIG_OPTIMIZER_FIELDS_H_
