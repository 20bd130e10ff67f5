#include <gtest/gtest.h>
TEST(Faults, Placeholder) {}
