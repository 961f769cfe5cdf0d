"""The words and the plots of the tales: pure data, in the notation that `grammar` reads.

    [ran|walked|crept*2]   one of these, the last twice as likely as each of the others
    <weather>              a word from the list "weather", or the rule of that name, written here
    {new place}            a word from the list "place", written and remembered
    {place}                what was remembered, written again; {He} begins with a capital
    {a new look}, <a look> the same with "a" or "an" in front of the word
    <result by machine>    the rule "result clock" where the remembered machine is a clock
    ¶                      a new paragraph

The first line of a list names what a word brings to memory: its own place first, then its companions. The words before
a " / " share the companions behind it, so that drawing "girl" also settles "she", "her" and "her".
The options of a choice never begin alike: each choice is a prefix code, so a tale can be read in one way only.
"""

WORDS = {
    "child": """
        child / he / him / his
        girl*11 / she / her / her
        boy*10 / he / him / his""",
    "girl's name": "hero; Ada*5, Nell*5, Rosa*4, Tess*4, Ivy*3, Mina*3, Dora*2, Lulu*2",
    "boy's name": "hero; Tom*5, Otto*5, Finn*4, Milo*4, Hugo*3, Jack*3, Ned*2, Sam*2",
    "trait": """
        trait / said
        bold, brave / shouted
        shy, timid / whispered
        merry / sang
        gloomy / sighed
        sleepy / yawned
        grumpy / grumbled
        clever, quiet / said""",
    "adj": "adj; old*2, windy, lonely, sunny, crooked, misty, famous, little, quiet, grand",
    "place": "place; bridge, mill, barn, orchard, tower, market, forest, church, canal, station, school, well",
    "quirk": """
        quirk / habit
        counted everything / count
        was always late / late
        was always hungry / hungry
        told tall stories / tell
        sang all day / sing
        collected {new things}*2 / keep""",
    "weather": "weather; windy*2, rainy*2, sunny*2, misty, cold*2, warm, grey, quiet",
    "night": "night; windy, rainy, misty, cold, warm, quiet, grey",
    "time": "time; morning*3, evening*3, Monday, Tuesday, Thursday, Friday, Saturday, Sunday",
    "season": "season; spring, summer, autumn, winter",
    "day": "day; Monday, Tuesday, Thursday, Friday, Saturday, Sunday",
    "n": "n; two, three, four, five, six, seven, eight, nine, ten, eleven, twelve",
    "things": "things; buttons, eggs, candles, onions, apples, nails, keys, spoons, bells, nuts, buns, pies",
    "goods": "goods; hens, drums, kites, maps, pigs, ducks, chairs, clocks, boats, hats",
    "how": "how; sadly, kindly, slowly, crossly, proudly, politely, gladly, wisely, at last, at once",
    "manner": "manner; sadly, kindly, slowly, crossly, proudly, politely, gladly, wisely",
    "oh": "oh; Oh dear, Oh no, Oh my, I see, How odd, Oh well, Well, Quite",
    "look": """look; thin, round, tall, odd, sad, muddy, polite, old, little, famous, lonely, shy, brave,
        gloomy, sleepy, grumpy, merry, clever, timid""",
    "small": """
        animal / says
        mouse, bat / squeaked
        toad, frog / croaked
        mole, snail / mumbled""",
    "big": """
        animal / skill / says
        fox, dog / dig / barked
        owl / wing / hooted
        goose / wing / honked
        crow / wing / croaked
        goat / chew / bleated
        pig / chew / grunted""",
    "person": "person; baker, miller, postman, teacher, doctor, farmer, mayor, captain, barber",
    "court": "court; king, queen, cook",
    "colour": "colour; red*2, blue*2, green*2, yellow, white, black, pink, orange, spotted, striped, silver",
    "wear": """
        wear / cold
        sock, boot, slipper / one cold foot
        mitten, glove / one cold hand
        hat, cap / two cold ears""",
    "tool": """
        tool / use / play
        bell*2 / sound / rang
        drum*2 / sound / beat
        lamp, torch, lantern / light / lit
        rope, net / line / threw""",
    "food": "food; pie, cake, bun, melon, egg, onion",
    "house": "house; house, boat, kitchen, shop, school",
    "meal": "meal / tea; Tea / tea; Supper / supper; Dinner / dinner",
    "promise": """
        promise / came
        on a Tuesday / It was a Tuesday
        when it rains / It was raining
        when it snows / It was snowing
        when the moon is round / The moon was round""",
    "verb": "verb; swim, dance, read, sing, count, cook",
    "goal": "way / goal; to see the sea / sea; up the hill / hill",
    "machine": """
        machine / fault
        clock / went backwards
        kettle / sang all day
        umbrella / rained on the inside""",
    "noise": """
        did / does
        knocked / knocks
        coughed / coughs
        hummed / hums
        yawned / yawns""",
    "nook": "nook; under the bed, behind the door, inside the clock, on the stairs",
    "box": "box; box, drum, bucket, kettle, clock",
    "scoop": "scoop; net, bucket, spoon, hat, kettle, cup",
    "medal": "medal; cup, bell, hat, drum",
    "best": "best; biggest, finest, roundest",
    "crop": "crop; onion, apple, melon, nut",
    "lamp": "lamp; lamp, torch, lantern",
    "water": "water; pond, well, canal, soup",
}

RULES = {
    "tale": """<intro>[. [<when> {he} [<lost>|<journey>|<crumbs>]*3|<secret>|<prize>|<dark>|<moon>|<snow>]*8|
        , who {new quirk}. [<when> [{he} [<repaid>|<useful>]*2|<mended>]*3|<trade>] <last by habit>*4]""",
    "intro": """[
        [Beside|Behind|Near|Beyond] the {new adj} {new place} lived {a new trait} {new child} called <name by child>|
        Everyone [near|behind|beyond|beside] the {new adj} {new place} knew {a new trait} {new child} called
            <name by child>|
        [Once|Long ago], [beside|behind|near|beyond] the {new adj} {new place}, lived {a new trait} {new child} called
            <name by child>]""",
    "name girl": "{new girl's name}",
    "name boy": "{new boy's name}",
    "when": "One <weather> <time>[,| in <season>,]",
    "by": "[behind|beside|near|by|beyond]",
    # A lost thing is found, with somebody in it.
    "lost": """lost {his} {new colour} {new wear}. {He} looked [under|behind|inside] the [bed|stairs|kettle],
        [under|behind|inside] the [clock|door|cow] and [in the soup|down the well|on the roof]. ¶ {A new look}
        {new small} was [hiding|eating|reading|cooking] in it, <by> the {place}. "This is my {new house} now,"
        {says} the {animal} <how>. "{new meal} is at {new n}." ¶ "<oh>," {said} {hero} <how>. Now {he} has {cold},
        and {tea} every <day> at {n}.""",
    # A journey, and what came home.
    "journey": """took <n> <things>, {a new colour} {new wear} and {a new look} {new big} {new goal}. They walked
        for <n> days [in the rain|under the stars|without a map]. ¶ <sight by goal>""",
    "sight sea": """The sea was [round|little|cold] and [muddy|grey|old]. "Who [left it on|lost it|needs it]?"
        {says} the {animal} <how>. "<oh>," {said} {hero} <manner>. ¶ They took a little sea home in the {colour}
        {wear}. It lives in <a colour> [cup|bucket|kettle] now, and every <day> it has [waves|rain|<n> fish].""",
    "sight hill": """From there, home was like a [button|nut|bun]. "A [cow|king|mouse|hen] might [eat|lose|take]
        it," {says} the {animal} <how>. "<oh>," {said} {hero} <manner>. ¶ They lost the {colour} {wear} and ran
        <manner> until the {place} was big again.""",
    # Good manners would have been worse.
    "crumbs": """cooked <a colour> [pie*2|cake*2|bun]. {A new look} {new big} ate <n> bits, the <look> <person> ate
        <n> and the <court> took the rest. ¶ [Hungry|Sad|Cross], {he} went to look for <n> <things> in the
        [forest|fog|dark|snow], and got lost. But the {animal} had gone that way, and it was a muddy eater. {hero}
        followed the crumbs for <n> hours, <by> the {place}, to {his} own [door|bed|kitchen]. ¶ On <day> {he} cooked
        <n> more. "Drop [a little|some|it all]," {said} {hero} <how>.""",
    # Two secrets.
    "secret": """{A new look} {new small} told {him} a secret one <weather> <time>. "I cannot {new verb}," it {says}
        <how>. ¶ The <look> <person> gave {him} <n> <colour> <things> to tell it, and the <court> <n> <goods>.
        {hero} [said nothing|looked at the sky|hummed]. It was like [hiding|eating] [a bee|a bell|a wet fish|hot
        soup]. ¶ On <day> {he} went back. "Nor can I," {said} {hero} <how>. Now they {verb} badly, <by> the {place},
        every <day>, and that is a secret too.""",
    # The prize goes to the thief.
    "prize": """That [year|<season>] there was {a new colour} {new medal} for the {new best} {new crop}. {hero} grew
        one like a [cow|boat|house|bed|drum|moon|hat]. ¶ At night {a new look} {new big} ate it, and <n> <things>,
        and <n> <goods>. "<oh>," {said} {hero} <how>, and took the {animal} to the {place} instead. ¶ The <look>
        {new person} looked at it <n> times. "That is the {best} {crop} I have [seen|met]," said the {person} <how>.
        It won the {colour} {medal}, and ate that too.""",
    # Two fears meet.
    "dark": """{He} was afraid of the dark. One <night> night something {new noise} <manner> {new nook}. {hero} lit
        {a new colour} {new lamp}. It was {a new look} {new small} with [some|too many] <things>. "Put it out,"
        {says} the {animal} <how>. "I am afraid of the light." ¶ They talked <manner> until {new n}. Then they hung
        {a new colour} {new wear} on the {lamp}. It was not dark, and not light. ¶ Now, every night at {n},
        something {does} {nook}, and {hero} {does} back.""",
    # A rescue nobody asked for.
    "moon": """Late one <night> night {a new look} {new big} came to the [window|door|gate]. "<oh>," it {says}
        <how>. "The moon is in the {new water}." {hero} took {a new colour} {new scoop}, but the moon broke into <n>
        bits. ¶ They [waited|said nothing|ate <n> <colour> buns]. Then a cloud moved, and there it was in the sky.
        "It got out <manner>," {said} {hero}. "It must be [wet|cold|hungry|cross]," said the {animal}. ¶ They hung
        {a new colour} {new wear} <by> the {place}. In the morning it [was wet|was gone|had <n> <things> in it].""",
    # A guest comes back.
    "snow": """When [the snow|winter] came, {he} built a snowman <by> the {place}, with {new n} {new things} and
        {a new colour} {new wear}. ¶ On <day> the [sun|spring|rain] came. "[I must go|My feet are wet|I am late],"
        said the snowman <how>. "Keep my {wear}." Soon there was nothing but {n} {things}. {hero} put the {colour}
        {wear} in <a colour> {new box}. ¶ On the night of the next snow, somebody {new noise} <manner> at the
        [window|door|gate]. "<oh>," {said} {hero} <how>, and ran to the {box}.""",
    # A promise is kept.
    "repaid": """met {a new look} {new big} under a [gate|net|drum|bucket]. {He} pulled for <n> hours. "I will help
        you," {says} the {animal} <how>, "{new promise}." ¶ After <n> [days|weeks|years] somebody locked {hero} in
        the [barn|mill|church|school|tower|kitchen] with <n> <colour> <goods>. "<oh>," {said} {hero} <how>. {came}.
        The {animal} <rescue by skill>.""",
    "rescue dig": "dug under the [bed|stairs|door] for <n> hours",
    "rescue wing": "came in at the window with <n> keys",
    "rescue chew": "ate the door and <n> <goods>",
    # What nobody needed is what they need.
    "useful": """found {a new colour} {new tool} <by> the {place}. "Who needs [{a tool}|that]?" said the <look>
        {new person} <how>. ¶ On <day> the {person} <trouble by use> for <n> hours, and the {person} came out with
        <n> <colour> <goods>. ¶ "<oh>," said the {person} <how>. "What a [fine|famous|clever|brave] {tool}." """,
    "trouble sound": "got lost in the [fog|snow|forest]. {hero} {play} the {tool}",
    "trouble light": "got lost in the [dark|fog|forest]. {hero} {play} the {tool}",
    "trouble line": "fell into the [canal|pond|well|soup]. {hero} {play} the {tool} and pulled",
    # Round and back again.
    "trade": """{He} had {a new food} and wanted {a new colour} {new wear}. <when> {he} gave the {food} to the
        <look> {new person} for <n> <things>, those to {a new look} {new big} for <n> <colour> <goods>, and those
        for the {wear}. ¶ It was too [big|little|old]. "<oh>," {said} {hero} <how>. ¶ {He} gave everything back, and
        the {person} and the {animal} came to help {him} eat the {food}.""",
    # A broken thing mended, almost.
    "mended": """{a new machine} broke, and the <look> {new person} was [cross|sad|late]. {hero} mended it with <n>
        <things>, <n> <colour> <goods> and [some|a little] [soup|snow|rain]. ¶ It {fault}. "<oh>," said the {person}
        <how>. "Wait until {new day}," {said} {hero}. ¶ By {day}, <result by machine>.""",
    "result clock": "supper came before [dinner|tea], and nobody minded",
    "result kettle": "<n> [hens|ducks|pigs] had come to [tea|supper|dinner]",
    "result umbrella": "the {person} grew <n> <things> in it",
    # A habit that had its turn in the first sentence has the last word.
    "last count": "{hero} counted the [stars|hens|chairs|ducks], and there were <n> more than before.",
    "last late": "{hero} was <n> hours late for [supper|tea|school|bed], and so was the [moon|king|queen|cook].",
    "last hungry": "Then {hero} ate <n> [eggs|onions|apples|nuts|buns|pies] <manner>.",
    "last tell": "{hero} told the <look> <court>, who [coughed|yawned|sighed] <manner>.",
    "last sing": "{hero} sang <manner> all the way home, and the [ducks|kettle|clocks|hens] sang back.",
    "last keep": "That night {hero} had <n> more {things}.",
}
